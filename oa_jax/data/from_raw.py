"""From raw public files to numbered events: one function a protocol.

Each takes the paths of its files, in the order of the catalogue, the `Reading` that counts lines,
and the options of the data set.
"""

from __future__ import annotations

import dataclasses

import polars as pl

from oa_jax.data import filters, raw
from oa_jax.data.built import DATES, SECONDS, Built, numbered, tenths, user_disjoint_roles


def abxi(paths, reading, what: str) -> Built:
    """Two "ratings only" files of 2014, filtered as ABXI does; ratings are ignored."""
    events = filters.joined(*(raw.ratings(path, reading) for path in paths))
    return numbered(filters.abxi(events), what, by_name=True, times=SECONDS)


def llm4cdsr(paths, reading, what: str, window, over_prune: bool) -> Built:
    """Reviews A, reviews B, metadata A, metadata B of 2018, filtered as LLM4CDSR does."""
    *review_paths, meta_a, meta_b = paths
    events = filters.joined(*(raw.reviews(path, reading, *window) for path in review_paths))
    events = filters.core(events, over_prune=over_prune)

    def texts(domain, names):
        return raw.metadata((meta_a, meta_b)[domain], reading, set(names))

    return numbered(events, what, by_name=False, texts=texts, times=SECONDS)


def douban(paths, reading, what: str) -> Built:
    """Cleaned reviews of books, movies and music; music is counted by the filter, then left out.

    Of an item's tags, each kept once, is its text.
    """
    kinds = zip(paths, raw.DOUBAN_FIELDS, strict=True)
    parts = [raw.douban(path, reading, kind) for path, kind in kinds]
    tagged = [f.with_columns(domain=pl.lit(d, pl.Int8)) for d, f in enumerate(parts)]
    events = filters.douban(pl.concat(tagged))
    n_users = events["user"].n_unique()
    events = events.filter(pl.col("domain") < 2)

    def texts(domain, names):
        rows = events.filter(pl.col("domain") == domain)
        tags = rows.group_by("item").agg(pl.col("label").unique(maintain_order=True))
        return {item: {"category": labels} for item, labels in tags.iter_rows()}

    notes = {"users_without_events": n_users - events["user"].n_unique()}
    return numbered(events, what, by_name=False, texts=texts, times=DATES, notes=notes)


def cdsrnp(paths, reading, what: str, share: float, least_rating: float = 3) -> Built:
    """Two "ratings only" files of 2014: rating >= 3, cores within the domains, all overlapped users
    and a share of the others, times kept, users of training, validation and test disjoint."""
    events = filters.joined(*(raw.ratings(path, reading, least_rating) for path in paths))
    events = filters.keep_single(filters.domain_core(events), share)
    built = numbered(events, what, by_name=True, times=SECONDS, split="users 80/10/10")
    role = user_disjoint_roles(built.user, tenths(built.raw_users, "split"))
    return dataclasses.replace(built, role=role)
