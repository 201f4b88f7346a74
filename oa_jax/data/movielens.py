"""MovieLens as two domains: disjoint groups of genres, from a user's own copy."""

import dataclasses
import pathlib

import polars as pl

from oa_jax.data import filters, tables, times, values
from oa_jax.data.blocks import blocks
from oa_jax.data.raw import numbered
from oa_jax.data.store import ORDER, Built
from oa_jax.data.texts import Reading, errors, shown
from oa_jax.data.values import InputFile, LeftOut
from oa_jax.errors import UserError

# A film of both groups, or of neither, is in no domain.
GENRES = (
    {"Action", "Adventure", "Crime", "Horror", "Sci-Fi", "Thriller", "War", "Western"},
    {"Animation", "Children's", "Comedy", "Drama", "Musical", "Romance"},
)
COLUMNS = ("user", "item", "rating", "time")


def genres(paths: list[pathlib.Path], reading: Reading, what: str, duplicates: str) -> Built:
    """Ratings and films of MovieLens 1M, or ratings, films and names of genres of 100K.

    All ratings are events. Kept are films of one of the GENRES' groups alone, events under
    `filters.domain_core` with 5 of a user and 5 of an item, and of these users of both domains.
    """
    ratings, films, *names = paths
    table = tables.Table(ratings, tables.TEXT, COLUMNS, "\t" if names else "::")
    roles = {role: role for role in ("user", "item", "time")}
    source = InputFile(table, "film", roles, ratings.name)
    events, _, _ = values.read([source], "s", "refuse", reading, LeftOut([source]))
    known = _films_100k(films, names[0]) if names else _films_1m(films)
    inside = {film: [bool(own & group) for group in GENRES] for film, (_, own) in known.items()}
    group = {film: groups.index(True) for film, groups in inside.items() if sum(groups) == 1}
    domain = pl.col("item").cast(pl.String)
    domain = domain.replace_strict(group, default=None, return_dtype=pl.Int8)
    events = events.with_columns(domain=domain)
    n_films = events.filter(pl.col("domain").is_null())["item"].n_unique()
    events = filters.without_copies(events.drop_nulls("domain"), duplicates)
    events = filters.domain_core(events, item_least=5)
    events = events.filter(filters.kept(events, "both"))

    def texts(domain, items):
        return {i: {"title": known[i][0], "category": sorted(known[i][1])} for i in items}

    notes = {"films_of_no_domain": n_films, "genres": [sorted(own) for own in GENRES]}
    built = numbered(events, what, by_name=True, texts=texts, times=ORDER, notes=notes)
    time, word = times.stored(pl.Series(built.time), is_unix=True)
    return dataclasses.replace(built, time=time.to_numpy(), times=word)


def _films_1m(path):
    """id -> (title, genres) of movies.dat: id::title::genres separated by bars."""
    fields = _fields(path, "::", 3, "id::title::genres")
    return {film: (title, set(own.split("|"))) for film, title, own in fields}


def _films_100k(path, genre_path):
    """The same of u.item, whose last columns are flags of the genres of u.genre."""
    names = [name for name, _ in _fields(genre_path, "|", 2, "genre|number")]
    fields = _fields(
        path, "|", 5 + len(names), f"5 fields and {len(names)} flags separated by bars"
    )
    return {
        film: (title, {name for name, flag in zip(names, flags, strict=True) if flag == "1"})
        for film, title, _, _, _, *flags in fields
    }


def _fields(path, delimiter, n, expected):
    with errors(path):
        # Both sets are in Latin 1.
        lines = b"".join(block for _, block in blocks(path, Reading())).decode("latin-1")
    for number, line in enumerate(lines.split("\n"), 1):
        fields = line.strip("\r").split(delimiter)
        if len(fields) == n:
            yield fields
        elif line.strip():
            raise UserError(f"{path}: line {number}: found {shown(line)}, expected {expected}")
