"""Numbered events from raw public files: one function for each protocol.

Each function takes the paths of its files in the order of the catalogue, the `Reading` that counts
lines, the name of the data set, how to treat exact copies of events (see
`filters.without_copies`), and the options of the set.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import polars as pl

from oa_jax.data import filters, readers, tables, times, values
from oa_jax.data.blocks import blocks
from oa_jax.data.roles import leave_one_out_roles, tenths, user_disjoint_roles
from oa_jax.data.store import DATES, SECONDS, Built, item_table
from oa_jax.data.texts import Reading, shown
from oa_jax.data.values import InputFile, LeftOut
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS

Paths = list[pathlib.Path]
# Domains of MovieLens. A film of both groups, or of neither, is in no domain.
GENRES = (
    {"Action", "Adventure", "Crime", "Horror", "Sci-Fi", "Thriller", "War", "Western"},
    {"Animation", "Children's", "Comedy", "Drama", "Musical", "Romance"},
)


def abxi(paths: Paths, reading: Reading, what: str, duplicates: str) -> Built:
    """Two "ratings only" files of 2014, filtered as ABXI does; ratings are ignored."""
    events = filters.joined(*(readers.ratings(path, reading) for path in paths))
    filtered = filters.abxi(filters.without_copies(events, duplicates))
    if not len(filtered):
        check_columns(events, what)
    return numbered(filtered, what, by_name=True, times=SECONDS)


def llm4cdsr(
    paths: Paths, reading: Reading, what: str, duplicates: str, window: list[int], over_prune: bool
) -> Built:
    """Reviews A, reviews B, metadata A, metadata B of 2018, filtered as LLM4CDSR does.

    window: only reviews between these two times. over_prune: quirk Q18, see `filters.core`.
    """
    events = filters.joined(*(readers.reviews(path, reading, *window) for path in paths[:2]))
    events = filters.core(filters.without_copies(events, duplicates), over_prune=over_prune)

    def texts(domain, names):
        return readers.metadata(paths[2 + domain], reading, set(names))

    return numbered(events, what, by_name=False, texts=texts, times=SECONDS)


def douban(paths: Paths, reading: Reading, what: str, duplicates: str, kinds: list[str]) -> Built:
    """Cleaned reviews of books, movies and music. The filter counts all three kinds; two are kept.

    The text of an item is its tags, each once.
    """
    names = list(readers.DOUBAN_FIELDS)
    pair = {names.index(kind): domain for domain, kind in enumerate(kinds)}
    events = filters.joined(*map(readers.douban, paths, [reading] * 3, names))
    events = filters.douban(filters.without_copies(events, duplicates))
    n_users = events["user"].n_unique()
    events = events.filter(pl.col("domain").is_in(list(pair)))
    events = events.with_columns(pl.col("domain").replace_strict(pair, return_dtype=pl.Int8))

    def texts(domain, names):
        tags = events.filter(domain=domain).group_by("item")
        tags = tags.agg(pl.col("label").unique(maintain_order=True))
        return {item: {"category": labels} for item, labels in tags.iter_rows()}

    notes = {"users_without_events": n_users - events["user"].n_unique()}
    return numbered(events, what, by_name=False, texts=texts, times=DATES, notes=notes)


def cdsrnp(paths: Paths, reading: Reading, what: str, duplicates: str, share: float) -> Built:
    """Two "ratings only" files of 2014. Keeps ratings >= 3, cores within the domains, all
    overlapped users, a share of the others, and times. Training, validation and test users are
    disjoint."""
    events = filters.joined(*(readers.ratings(path, reading, least=3) for path in paths))
    check_columns(events, what)  # cores of swapped columns are not empty: a wrong set in silence
    events = filters.domain_core(filters.without_copies(events, duplicates))
    events = filters.keep_single(events, share)
    built = numbered(events, what, by_name=True, times=SECONDS, split="users 80/10/10")
    role = user_disjoint_roles(built.user, tenths(built.raw_users, "split"))
    return dataclasses.replace(built, role=role)


def movielens(paths: Paths, reading: Reading, what: str, duplicates: str) -> Built:
    """Ratings and films of MovieLens 1M, or ratings, films and names of genres of 100K.

    Every rating is an event. Keeps films of exactly one group of GENRES, then
    `filters.domain_core` with 5 events of a user and 5 of an item, then users of both domains.
    """
    ratings, films, *names = paths
    columns = ("user", "item", "rating", "time")
    table = tables.Table(ratings, tables.TEXT, columns, "\t" if names else "::")
    roles = {role: role for role in ("user", "item", "time")}
    source = InputFile(table, "film", roles, ratings.name)
    events, _, _ = values.read([source], "s", "refuse", reading, LeftOut([source]))
    known = _films_100k(films, names[0]) if names else _films_1m(films)
    inside = {film: [bool(own & group) for group in GENRES] for film, (_, own) in known.items()}
    group = {film: groups.index(True) for film, groups in inside.items() if sum(groups) == 1}
    film = pl.col("item").cast(pl.String)
    domain = film.replace_strict(group, default=None, return_dtype=pl.Int8)
    events = events.with_columns(domain=domain)
    n_films = events.filter(pl.col("domain").is_null())["item"].n_unique()
    events = filters.without_copies(events.drop_nulls("domain"), duplicates)
    events = filters.domain_core(events, item_least=5)
    events = events.filter(filters.kept(events, "both"))

    def texts(domain, items):
        return {i: {"title": known[i][0], "category": sorted(known[i][1])} for i in items}

    notes = {"films_of_no_domain": n_films, "genres": [sorted(own) for own in GENRES]}
    time, word = times.stored(events["time"], is_unix=True)
    events = events.with_columns(time=time)
    return numbered(events, what, by_name=True, texts=texts, times=word, notes=notes)


def _films_1m(path):
    """id -> (title, genres) of movies.dat: id::title::genres separated by bars."""
    fields = _fields(path, "::", 3, "id::title::genres")
    return {film: (title, set(own.split("|"))) for film, title, own in fields}


def _films_100k(path, genre_path):
    """The same of u.item, whose last columns are flags of the genres of u.genre."""
    names = [name for name, _ in _fields(genre_path, "|", 2, "genre|number")]
    expected = f"5 fields and {len(names)} flags separated by bars"
    fields = _fields(path, "|", 5 + len(names), expected)
    return {
        film: (title, {name for name, flag in zip(names, flags, strict=True) if flag == "1"})
        for film, title, _, _, _, *flags in fields
    }


def _fields(path, delimiter, n, expected):
    # Both sets are in Latin 1.
    lines = b"".join(block for _, block in blocks(path, Reading())).decode("latin-1")
    for number, line in enumerate(lines.split("\n"), 1):
        fields = line.strip("\r").split(delimiter)
        if len(fields) == n:
            yield fields
        elif line.strip():
            raise UserError(f"{path}: line {number}: found {shown(line)}, expected {expected}")


def check_columns(events: pl.DataFrame, what: str, named: bool = False) -> None:
    """Raise UserError, which shows some ids, if no user occurs in both domains. named: the columns
    have names."""
    if len(filters.in_both(events, "user")):
        return
    message = f"{what}: no user occurs in both {'domains' if named else 'files'}"
    # People take part in both domains; a thing is sold in one category as a rule.
    if not named and len(found := filters.in_both(events, "item")):
        message += f", but the id {min(found)!r} of the second column does: this looks like "
        message += "item,user,rating,time, the order of 2018"
    first = events.group_by("domain", maintain_order=True).first()["user"].to_list()
    shown = " and ".join(map(repr, first))
    expected = "the same people in both" if named else "user,item,rating,time"
    raise UserError(f"{message}: the first users are {shown}: expected {expected}")


def numbered(
    events: pl.DataFrame,
    what: str,
    by_name: bool,
    texts: Callable[[int, list], dict] = lambda domain, names: {},
    **rest,
) -> Built:
    """Number users and items of filtered events and sort each user's events by time.

    by_name: number in the order of the names (ABXI), otherwise by first appearance (LLM4CDSR).
    texts: function (domain, names) -> fields of the items. rest: further fields of `Built`. Roles
    are those of leave-one-out. Raises UserError if a domain has nothing left.
    """
    columns = [events["user"], *(events.filter(domain=d)["item"] for d in (0, 1))]
    users, *raw = (names.unique(maintain_order=True) for names in columns)
    if by_name:
        users, *raw = (names[names.cast(pl.String).arg_sort()] for names in (users, *raw))
    for domain, names in zip(DOMAINS, raw, strict=True):
        if not len(names):
            raise UserError(f"{what}: no events of domain {domain} are left")
    people = pl.DataFrame({"user": users}).with_row_index("user_id")
    items = filters.joined(*(pl.DataFrame({"item": names}) for names in raw))
    items = items.with_row_index("item_id", 1)
    events = events.join(people, on="user", maintain_order="left")
    events = events.join(items, on=["item", "domain"], maintain_order="left")
    events = events.sort("user_id", "time", maintain_order=True)
    user, item = (events[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id"))
    names = tuple(r.to_list() for r in raw)
    table = item_table(names, tuple(texts(d, names[d]) for d in (0, 1)))
    time, role = events["time"].to_numpy(), leave_one_out_roles(user)
    n_items, raw_users = (len(raw[0]), len(raw[1])), list(map(str, users.to_list()))
    return Built(user, item, time, role, n_items, raw_users, table, **rest)
