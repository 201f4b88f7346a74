"""What a source gives: numbered events with roles, and the item table."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from oa_jax.data.filters import hash_rank
from oa_jax.errors import UserError
from oa_jax.events.log import CONTEXT, DOMAINS, TEST, TRAINING, VALIDATION

LEAVE_ONE_OUT = "leave_one_out"
SECONDS, ORDER, DATES = "unix seconds", "order", "yyyymmdd"


@dataclasses.dataclass(frozen=True)
class Built:
    """Columns of an InteractionLog with roles, raw ids, and what to say about them.

    times: SECONDS, DATES, or ORDER where the source has none and `time` is the place in the
    sequence. split: what the roles follow. notes: further metadata.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    role: np.ndarray
    n_items: tuple[int, int]
    raw_users: list[str]
    items: list[dict]
    times: str
    split: str = LEAVE_ONE_OUT
    notes: dict = dataclasses.field(default_factory=dict)


def item_table(raw: tuple[list, list], texts=({}, {})) -> list[dict]:
    """Items of A, then of B: joint id, domain, raw id and the fields that `texts` has for it."""
    items = []
    for domain, names, fields in zip(DOMAINS, raw, texts, strict=True):
        for name in names:
            head = {"id": len(items) + 1, "domain": domain, "raw": str(name)}
            items.append(head | fields.get(name, {}))
    return items


def numbered(events: pl.DataFrame, what: str, by_name: bool, texts=None, **rest) -> Built:
    """Number users and items of filtered events and sort each user's events by time.

    by_name: ids in the order of the names (ABXI), otherwise by first appearance (LLM4CDSR).
    texts: function (domain, names) -> fields of the items. The roles are those of leave-one-out.

    Raises UserError if a domain has nothing left.
    """
    users = _distinct(events["user"], by_name)
    raw = [_distinct(events.filter(pl.col("domain") == d)["item"], by_name) for d in (0, 1)]
    for domain, names in zip(DOMAINS, raw, strict=True):
        if not len(names):
            raise UserError(f"{what}: no events of domain {domain} are left by the filters")
    ids = pl.concat(
        [
            pl.DataFrame({"item": names}).with_columns(domain=pl.lit(d, pl.Int8))
            for d, names in enumerate(raw)
        ]
    ).with_row_index("item_id", 1)
    events = (
        events.join(pl.DataFrame({"user": users}).with_row_index("user_id"), on="user")
        .join(ids, on=["item", "domain"], maintain_order="left")
        .sort("user_id", "time", maintain_order=True)
    )
    user = events["user_id"].to_numpy().astype(np.int64)
    names = tuple(r.to_list() for r in raw)
    fields = tuple(texts(d, names[d]) for d in (0, 1)) if texts else ({}, {})
    return Built(
        user,
        events["item_id"].to_numpy().astype(np.int64),
        events["time"].to_numpy(),
        **{"role": leave_one_out_roles(user)} | rest,
        n_items=(len(raw[0]), len(raw[1])),
        raw_users=[str(name) for name in users.to_list()],
        items=item_table(names, fields),
    )


def _distinct(names, by_name):
    names = names.unique(maintain_order=True)
    return names.sort() if by_name else names


def from_end(user: np.ndarray) -> np.ndarray:
    """(N,) how many events of the same user follow; `user` is ascending."""
    return np.searchsorted(user, user, side="right") - np.arange(len(user)) - 1


def leave_one_out_roles(user: np.ndarray) -> np.ndarray:
    """Last event TEST, the one before VALIDATION; users with fewer than 3 events are CONTEXT."""
    left = from_end(user)
    role = np.where(left == 0, TEST, np.where(left == 1, VALIDATION, TRAINING))
    return np.where(np.bincount(user)[user] < 3, CONTEXT, role).astype(np.int8)


def user_disjoint_roles(user: np.ndarray, part: np.ndarray) -> np.ndarray:
    """All events of a training user are TRAINING; of another user the last one is the target.

    part: (U,) TRAINING, VALIDATION or TEST for every user. The other events are CONTEXT.
    """
    part = part[user]
    target = np.where(from_end(user) == 0, part, CONTEXT)
    return np.where(part == TRAINING, TRAINING, target).astype(np.int8)


def tenths(raw_users: list[str], purpose: str, test: bool = True) -> np.ndarray:
    """(U,) a part for each user: by its raw id a tenth VALIDATION, a tenth TEST (if `test`).

    Sequences of one raw user stay together.
    """
    names = sorted(set(raw_users))
    place = dict(zip(names, hash_rank(names, purpose), strict=True))
    tenth = np.array([10 * place[name] // len(names) for name in raw_users])
    part = np.where(tenth == 0, VALIDATION, TRAINING)
    return np.where((tenth == 1) & test, TEST, part)
