"""What users and items are called where they come from, and how often items were taken."""

import dataclasses

import numpy as np

from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.split import Split


@dataclasses.dataclass(frozen=True)
class Names:
    """Of a data set. A set without names, as published text or a synthetic world, has numbers.

    users: raw ids.  raw, title: of items 1, 2, …, A before B; a title is None where there is none.
    are_raw: whether they are names of the source, by which items of other sets can be known.
    domains: what the set calls A and B.
    """

    users: list[str]
    raw: list[str]
    title: list[str | None]
    n_items: tuple[int, int]
    are_raw: bool
    domains: tuple[str, str] = DOMAINS

    @property
    def domain(self) -> list[str]:
        return [name for name, n in zip(DOMAINS, self.n_items, strict=True) for _ in range(n)]

    def keys(self, by_name: bool = False) -> list[tuple[str, str]]:
        """(domain, raw id) of every item: what tells it from all others. by_name: the domain as
        the set calls it, not A or B."""
        called = dict(zip(DOMAINS, self.domains, strict=True)) if by_name else {}
        return [(called.get(d, d), raw) for d, raw in zip(self.domain, self.raw, strict=True)]


def of(log: InteractionLog) -> Names:
    """The names of the set that a log was read from."""
    n_all, items = sum(log.n_items), getattr(log.origin, "items", ())
    if items and (len(items), len(log.origin.raw_users)) == (n_all, log.n_users):
        raw, title = [str(item["raw"]) for item in items], [item.get("title") for item in items]
        return Names(log.origin.raw_users, raw, title, log.n_items, True, log.origin.domains)
    users, raw = map(str, range(log.n_users)), map(str, range(1, n_all + 1))
    return Names(list(users), list(raw), [None] * n_all, log.n_items, False)


def popularity(log: InteractionLog, split: Split) -> np.ndarray:
    """(1 + I,) how many users took each item in their training part."""
    trained, n_ids = split.in_training(log), 1 + sum(log.n_items)
    pairs = np.unique(log.user[trained].astype(np.int64) * n_ids + log.item[trained])
    return np.bincount(pairs % n_ids, minlength=n_ids)
