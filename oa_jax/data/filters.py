"""The filters of each protocol, on frames of events: user, item (ids of the source), time, domain.

`domain` is 0 for A and 1 for B. Rows come in the order of the files, all of A before all of B, and
every filter keeps that order. The order of steps and the strictness of bounds are those of the
official codes of ABXI, LLM4CDSR, AMID and CDSRNP; quirks are in `oa_jax/backbones/README.md`.
"""

import re

import polars as pl

from oa_jax.data.roles import hash_rank
from oa_jax.errors import UserError

# Both ends are out: 1 January is not of the year, 31 December is.
DOUBAN_DATES = (20160101, 20161232)


def joined(*parts: pl.DataFrame) -> pl.DataFrame:
    """The rows of all parts, A first, with a column `domain`: the number of their part."""
    return pl.concat([f.with_columns(domain=pl.lit(d, pl.Int8)) for d, f in enumerate(parts)])


def without_copies(events: pl.DataFrame, duplicates: str) -> pl.DataFrame:
    """Keep all exact copies of an event (same user, domain, item and time), or only one.

    duplicates: "keep" (as the official codes), or the "first" or "last" in the order of the file,
    which decides the place of the event among others of the same time.
    """
    if duplicates == "keep":
        return events
    return events.unique(["user", "domain", "item", "time"], keep=duplicates, maintain_order=True)


def abxi(
    events: pl.DataFrame, item_least: int = 10, length: int = 50, user_least: int = 5
) -> pl.DataFrame:
    """ABXI's six steps, each done once: 1. remove items that are in both domains; 2. keep users
    with both domains; 3. sort by (user, time), equal times keep A before B; 4. keep items with at
    least `item_least` events; 5. keep the last `length` events of a user; 6. keep users with at
    least `user_least` of these in each domain."""
    events = events.filter(~pl.col("item").is_in(in_both(events, "item").implode()))
    events = events.filter(pl.col("user").is_in(in_both(events, "user").implode()))
    events = events.sort("user", "time", maintain_order=True)
    events = events.filter(pl.len().over("item") >= item_least)
    events = events.group_by("user", maintain_order=True).tail(length)
    counts = [(pl.col("domain") == domain).sum().over("user") for domain in (0, 1)]
    return events.filter(*(count >= user_least for count in counts))


def in_both(events: pl.DataFrame, name: str) -> pl.Series:
    """Distinct values of a column that occur in both domains."""
    a, b = (events.filter(pl.col("domain") == d).select(pl.col(name).unique()) for d in (0, 1))
    return a.join(b, on=name, how="semi").to_series()


def core(events: pl.DataFrame, over_prune: bool = True) -> pl.DataFrame:
    """LLM4CDSR's core over both domains together: every user has at least 5 events, every item at
    least 3. With `over_prune` (quirk Q18) each pass keeps only rows with strictly more, as in the
    official code, so the result is smaller than the true core."""
    while len(events):
        users, items = pl.len().over("user"), pl.len().over("item")
        enough = (users >= 5) & (items >= 3)
        if events.select(enough.all()).item():
            break
        events = events.filter((users > 5) & (items > 3) if over_prune else enough)
    return events


def douban(events: pl.DataFrame) -> pl.DataFrame:
    """Douban's single pass over book, movie and music rows (domains 0, 1, 2).

    It keeps rows of 2016 whose item has more than 2 events and whose user has more than 1. Counts
    are over all dates and all three kinds, where items of equal raw number count as one.
    """
    return events.filter(
        pl.len().over("item") > 2,
        pl.len().over("user") > 1,
        pl.col("time").is_between(*DOUBAN_DATES, closed="none"),
    )


def domain_core(events: pl.DataFrame, user_least: int = 5, item_least: int = 10) -> pl.DataFrame:
    """AMID's and CDSRNP's cores: every user has at least `user_least` events in each domain where
    it has any, and every item at least `item_least`."""
    users, items = pl.len().over("user", "domain"), pl.len().over("item", "domain")
    return _until_stable(events, (users >= user_least) & (items >= item_least))


def _until_stable(events, mask):
    """What the mask keeps, of that again what it keeps, and so on until it keeps all."""
    n_before = -1
    while len(events) != n_before:
        n_before, events = len(events), events.filter(mask)
    return events


def keep_single(events: pl.DataFrame, share: float) -> pl.DataFrame:
    """Keep all users with both domains, and this share of the others (AMID's overlap ratio).

    Their ids decide which ones, so a smaller share is part of a larger one.
    """
    both = in_both(events, "user")
    single = events["user"].unique().sort()
    single = single.filter(~single.is_in(both.implode()))
    rank = hash_rank(single.to_list(), "overlap ratio")
    kept = pl.concat([both, single.filter(pl.Series(rank < round(share * len(single))))])
    return events.filter(pl.col("user").is_in(kept.implode()))


COMPARE = {">=": "ge", ">": "gt", "<=": "le", "<": "lt"}
# Steps that a user names: how one is written -> examples.
STEPS = {
    r"(rating|time)(>=|>|<=|<)([^=].*)": "rating>=4 or time<2024-01-01",
    r"(core|core_once)=(\d{1,9})(?:,(\d{1,9}))?": "core=5,3: least events of a user, an item",
    r"(each|last)=(\d{1,9})": "each=5, last=50",
    r"(duplicates|repeats)=(first|last)": "duplicates=first, repeats=last",
    r"(both)": "both",
}


def parsed(step: str) -> tuple[str, ...]:
    """A step of STEPS as (word, *values). Raises UserError for any other text."""
    plain = re.sub(r"\s*([<>=,]+)\s*", r"\1", step.strip())  # a date may have a blank inside
    for pattern in STEPS:
        if match := re.fullmatch(pattern, plain):
            return tuple(value for value in match.groups() if value is not None)
    raise UserError(f"--filter={step}: expected one such as {'; '.join(STEPS.values())}")


def kept(events: pl.DataFrame, word: str, *values: str) -> pl.Series:
    """The events that a parsed step keeps, (N,) bool.

    events: in the order of time; columns user, item, time, domain, and the one the step compares.
    core: the largest part in which users have at least so many events over both domains, and items
    at least so many in their domain; core_once: a single pass of it. each: the events of a user in
    a domain, if there are at least so many.
    """
    place, n_events = pl.int_range(pl.len()), pl.len()
    if word in ("rating", "time"):
        compare, limit = values
        mask = getattr(pl.col(word), COMPARE[compare])(limit)
    elif word == "both":
        mask = pl.col("domain").min().over("user") != pl.col("domain").max().over("user")
    elif word == "each":
        mask = n_events.over("user", "domain") >= int(values[0])
    elif word == "last":
        mask = place.over("user") >= n_events.over("user").cast(pl.Int64) - int(values[0])
    elif word in ("duplicates", "repeats"):
        same = ["user", "domain", "item", "time"][: 4 if word == "duplicates" else 3]
        end = pl.col("place").min() if values[0] == "first" else pl.col("place").max()
        events = events.with_columns(place=place)
        mask = pl.col("place") == end.over(same)
    else:
        users, items = int(values[0]), int(values[-1])
        mask = (n_events.over("user") >= users) & (n_events.over("item", "domain") >= items)
        if word == "core":
            numbered = events.select("user", "item", "domain", place=place)
            mask = place.is_in(_until_stable(numbered, mask)["place"].implode())
    return events.select(mask).to_series()
