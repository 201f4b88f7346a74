"""CDSRNP's model inputs on the host (specs cdsrnp §2, §5), cut from a log and a split.

A row is a user with a target item of one domain and the history before it. Shapes: R rows, L
length of a domain's stream, M length of the merged stream, O rows that the support set is drawn
from, H most distinct items of one user in a domain.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from oa_jax.backbones.abxi.arrays import _position, _ragged, _rank, _scatter
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.split import Split

STREAMS = ("seq", *(f"{part}_{d}" for d in DOMAINS for part in ("seq", "time")))
TARGETS = ("each_domain", "last", "every")


@dataclasses.dataclass(frozen=True)
class Rows:
    """user, place (R,): the user, and the place of the target in its sequence."""

    user: np.ndarray
    place: np.ndarray

    def __len__(self):
        return len(self.user)

    def take(self, chosen) -> Rows:
        return Rows(self.user[chosen], self.place[chosen])


def training_rows(log: InteractionLog, split: Split, targets: str) -> Rows:
    """Targets of the training parts that have a history, ordered by user and place.

    targets: "each_domain", a user's last training event of each domain; "last", the last of all,
    for sequences that are made for one target, as AMID's; "every", all that have a history: several
    times the rows, and the signal, of the other two.
    """
    position = _position(log)
    trained = position < split.n_train[log.user]
    if targets == "last":
        event = np.flatnonzero(position == split.n_train[log.user] - 1)
    elif targets == "every":
        event = np.flatnonzero(trained)
    else:
        lasts = [_last_of_each_user(log, trained & (log.domain == d)) for d in (0, 1)]
        event = np.sort(np.concatenate(lasts))
    rows = Rows(log.user[event], position[event])
    return rows.take(history(log, rows, 1, 1)["seq"][:, -1] != 0)


def evaluation_rows(split: Split, which: str) -> Rows:
    """The targets of `which`, 'val' or 'test'."""
    if which not in ("val", "test"):
        raise ValueError(f"which: found {which!r}, expected 'val' or 'test'")
    place = getattr(split, which)
    user = np.flatnonzero(place >= 0).astype(np.int32)
    return Rows(user, place[user])


def target_of(log: InteractionLog, rows: Rows) -> np.ndarray:
    """(R,) joint id of each row's target."""
    return log.item[log.offsets[rows.user] + rows.place]


def history(log: InteractionLog, rows: Rows, length: int, merged_length: int) -> dict:
    """Left-padded streams of what came before each target, earlier copies of it left out.

    seq: (R, M) joint ids of both domains in the order of the log.  seq_A, seq_B: (R, L) of one
    domain.  time_A, time_B: (R, L) the column of `seq` at which the token stands, -1 at padding
    and for tokens older than `seq` shows.
    """
    row, event = _past(log, rows)
    rank, count = _rank(row, len(rows))
    column = merged_length - count[row] + rank
    shape = (len(rows), merged_length)
    arrays = {"seq": _scatter(shape, (row, column), log.item[event])}
    for d, name in enumerate(DOMAINS):
        own = np.flatnonzero(log.domain[event] == d)
        rank, count = _rank(row[own], len(rows))
        place = (row[own], length - count[row[own]] + rank)
        shape, time = (len(rows), length), np.maximum(column[own], -1)
        arrays[f"seq_{name}"] = _scatter(shape, place, log.item[event[own]])
        arrays[f"time_{name}"] = _scatter(shape, place, time, fill=-1)
    return arrays


def evaluation_arrays(log, split, which: str, length: int, merged_length: int) -> dict:
    """Streams, user, target and domain (R,) of the rows; seen (R, H): what full ranking skips;
    n_history (R,): events before the target, copies of it left out."""
    rows = evaluation_rows(split, which)
    row, event = _past(log, rows)
    target = target_of(log, rows)
    return history(log, rows, length, merged_length) | {
        "user": rows.user,
        "target": target,
        "domain": (target > log.n_items[0]).astype(np.int8),
        "seen": _ragged(len(rows), row, log.item[event], fill=0),
        "n_history": np.bincount(row, minlength=len(rows)).astype(np.int32),
    }


def is_overlapped(arrays: dict) -> np.ndarray:
    """(R,) bool: rows whose history holds items of both domains."""
    return (arrays["seq_A"][:, -1] != 0) & (arrays["seq_B"][:, -1] != 0)


def persons(log: InteractionLog, split: Split, rows: Rows) -> np.ndarray:
    """(R,) int32: rows with one number have the same training events, so they are one person's.

    AMID gives an overlapped user two sequences, one for each domain of the target.
    """
    trained = _position(log) < split.n_train[log.user]
    order = np.lexsort((log.item[trained], log.user[trained]))
    item, user = log.item[trained][order], log.user[trained][order]
    bounds = np.searchsorted(user, np.arange(log.n_users + 1))
    key_of: dict[bytes, int] = {}
    number = {
        u: key_of.setdefault(item[bounds[u] : bounds[u + 1]].tobytes(), len(key_of))
        for u in np.unique(rows.user)
    }
    return np.array([number[u] for u in rows.user], np.int32)


def _past(log, rows):
    """(row, event) of every event before each row's target that is not of the target's item."""
    row = np.repeat(np.arange(len(rows)), rows.place)
    within = np.arange(len(row)) - np.repeat(np.cumsum(rows.place) - rows.place, rows.place)
    event = log.offsets[rows.user][row] + within
    kept = log.item[event] != target_of(log, rows)[row]
    return row[kept], event[kept]


def _last_of_each_user(log, chosen):
    """The last chosen event of each user that has one."""
    event = np.flatnonzero(chosen)
    user = log.user[event]
    return event[np.r_[user[1:] != user[:-1], True]] if len(event) else event
