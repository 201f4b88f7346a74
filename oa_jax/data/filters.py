"""The filters of each protocol, on frames of events: user, item (ids of the source), time, domain.

`domain` is 0 for A and 1 for B. Rows come in the order of the files, all of A before all of B, and
every filter keeps the order of what it keeps. Orders and strictness are those of the official
codes of ABXI, LLM4CDSR, AMID and CDSRNP; quirks are in `oa_jax/backbones/README.md`.
"""

import re

import polars as pl

from oa_jax.data.roles import hash_rank
from oa_jax.errors import UserError

# Both ends are out: 1 January is not of the year, 31 December is.
DOUBAN_DATES = (20160101, 20161232)


def joined(*parts: pl.DataFrame) -> pl.DataFrame:
    """Rows of A, then rows of B, and of any further part, with their domain."""
    return pl.concat([f.with_columns(domain=pl.lit(d, pl.Int8)) for d, f in enumerate(parts)])


def without_copies(events: pl.DataFrame, duplicates: str) -> pl.DataFrame:
    """Of exact copies (same user, domain, item and time) all, the first or the last.

    duplicates: "keep" (the official codes do), "first" or "last" in the order of the file, which
    decides where the event stands among others of the same time.
    """
    if duplicates == "keep":
        return events
    return events.unique(["user", "domain", "item", "time"], keep=duplicates, maintain_order=True)


def abxi(
    events: pl.DataFrame, item_least: int = 10, length: int = 50, user_least: int = 5
) -> pl.DataFrame:
    """ABXI's six steps, each once: 1. items of both domains leave both; 2. users with both domains
    stay; 3. sort by (user, time), equal times keep A before B; 4. items with at least `item_least`
    events; 5. the last `length` events of a user; 6. users with `user_least` events in each domain
    among these."""
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
    """LLM4CDSR's core over both domains together: every user has at least 5 events and every item,
    whatever its domain, at least 3. A pass keeps the rows whose counts are at least that; with
    `over_prune` strictly more (quirk Q18), so that the official result is smaller than the true
    core."""
    while len(events):
        users, items = pl.len().over("user"), pl.len().over("item")
        enough = (users >= 5) & (items >= 3)
        if events.select(enough.all()).item():
            break
        events = events.filter((users > 5) & (items > 3) if over_prune else enough)
    return events


def douban(events: pl.DataFrame) -> pl.DataFrame:
    """Douban's single pass over book, movie and music rows (domains 0, 1, 2).

    Counts run over all dates and all three kinds, items by their raw number whatever the kind;
    kept are rows whose item has more than 2 events and whose user more than 1, of 2016.
    """
    return events.filter(
        pl.len().over("item") > 2,
        pl.len().over("user") > 1,
        pl.col("time").is_between(*DOUBAN_DATES, closed="none"),
    )


def domain_core(events: pl.DataFrame, user_least: int = 5, item_least: int = 10) -> pl.DataFrame:
    """AMID's and CDSRNP's cores: every user has at least `user_least` events in each domain that it
    has at all, every item at least `item_least` in its domain."""
    users, items = pl.len().over("user", "domain"), pl.len().over("item", "domain")
    return _until_stable(events, (users >= user_least) & (items >= item_least))


def _until_stable(events, mask):
    """What the mask keeps, of that again what it keeps, and so on until it keeps all."""
    n_before = -1
    while len(events) != n_before:
        n_before, events = len(events), events.filter(mask)
    return events


def keep_single(events: pl.DataFrame, share: float) -> pl.DataFrame:
    """All users with both domains, and that share of the others (AMID's overlap ratio).

    Which ones follows from their ids, so that a smaller share is part of a larger one.
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
    """A step as (word, *values). Raises UserError for what is none of STEPS."""
    plain = re.sub(r"\s*([<>=,]+)\s*", r"\1", step.strip())  # a date may have a blank inside
    for pattern in STEPS:
        if match := re.fullmatch(pattern, plain):
            return tuple(value for value in match.groups() if value is not None)
    raise UserError(f"--filter={step}: expected one such as {'; '.join(STEPS.values())}")


def kept(events: pl.DataFrame, word: str, *values: str) -> pl.Series:
    """Which events a parsed step keeps, (N,) bool; the events are in the order of time.

    Besides user, item, time and domain they have the column that the step compares.
    core: the largest part in which users have so many events, over both domains, and items so many
    in theirs; core_once: one pass. each: the events of a user in a domain with so many of them.
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
