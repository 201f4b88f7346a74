"""LLM4CDSR's model inputs on the host (specs llm4cdsr §3), cut from a log and a split.

Shapes: U training rows, R evaluation rows, L length, N events of the log, H a longest history.
A window W is the last L + 1 events of a sequence. Of each domain the first item of W is never a
target: a *pair* is a later item together with the event before it in W.
"""

from __future__ import annotations

import numpy as np

from oa_jax.backbones.abxi.arrays import NO_ITEM, _position, _ragged, _scatter
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split

DOMAINS = ("A", "B")


def training_users(log: InteractionLog, split: Split) -> np.ndarray:
    """(U,) users with a training row: any training part, if their sequence has 3 events or more.

    A part of one event makes a row without inputs (Q17).
    """
    return np.flatnonzero((split.n_train >= 1) & (np.diff(log.offsets) >= 3)).astype(np.int32)


def training_arrays(log: InteractionLog, split: Split, length: int) -> dict[str, np.ndarray]:
    """Training rows, all (U, length) int32, left-padded with 0.

    seq, pos: joint ids of W without its last and without its first event.
    domain_mask: domain of pos where it makes a pair, otherwise -1.
    Of each domain D, in its own ids from 1: seq_D, pos_D, its items in W without the last and
    without the first; time_D, the column of seq at which the token stands; pair_D, the column
    before the token's target: where stream x predicts the same item.  -1 at padding.
    """
    users = training_users(log, split)
    end = split.n_train[users]
    event, row, column = _window(log, users, end, length)
    shape = (len(users), length)
    later = np.flatnonzero(np.r_[False, row[1:] == row[:-1]])  # not the first of its window
    arrays = {
        "seq": _scatter_inputs(shape, row, column, log.item[event]),
        "pos": _scatter(shape, (row[later], column[later] - 1), log.item[event[later]]),
        "domain_mask": np.full(shape, -1, np.int32),
    }
    for d, name in enumerate(DOMAINS):
        at = np.flatnonzero(log.domain[event] == d)
        is_target = at[1:][row[at[1:]] == row[at[:-1]]]  # the row has an earlier one in W
        arrays["domain_mask"][row[is_target], column[is_target] - 1] = d
        arrays |= _domain_stream(shape, row[at], column[at], _local(log, event[at], d), name)
    return arrays


def evaluation_arrays(
    log: InteractionLog, split: Split, which: str, length: int, drop_last_of_other: bool = True
) -> dict[str, np.ndarray]:
    """Histories and targets of the users that have a target in `which`, 'val' or 'test'.

    user, target, domain (R,); seen (R, H): as ABXI's.  seq, seq_D, time_D (R, length) as in
    training, W ending with the target.  n_history (R,): events before the target.
    drop_last_of_other: the stream of the domain that is not the target's ends one item early, as
    in the official code; it matters to `gca.kv=other` alone.
    """
    if which not in ("val", "test"):
        raise ValueError(f"which: found {which!r}, expected 'val' or 'test'")
    place = getattr(split, which)
    users = np.flatnonzero(place >= 0).astype(np.int32)
    event, row, column = _window(log, users, place[users] + 1, length)
    target = log.item[log.offsets[users] + place[users]]
    shape, domain = (len(users), length), log.domain[log.offsets[users] + place[users]]
    past = np.flatnonzero(_position(log) < place[log.user])
    past_row = np.searchsorted(users, log.user[past])
    unlike = log.item[past] != target[past_row]
    arrays = {
        "user": users,
        "target": target,
        "domain": domain,
        "seq": _scatter_inputs(shape, row, column, log.item[event]),
        "seen": _ragged(len(users), past_row[unlike], log.item[past[unlike]], fill=0),
        "n_history": place[users].astype(np.int32),
    }
    for d, name in enumerate(DOMAINS):
        at = np.flatnonzero(log.domain[event] == d)
        if not drop_last_of_other:  # a mark behind the last item, dropped in its stead
            at = np.flatnonzero((log.domain[event] == d) | (column == length))
        items = _local(log, event[at], d)
        stream = _domain_stream(shape, row[at], column[at], items, name)
        arrays |= {k: stream[k] for k in (f"seq_{name}", f"time_{name}")}
    return arrays


def own_items(log: InteractionLog, chosen: np.ndarray, users: np.ndarray, drop_last: bool):
    """Distinct items of the users' chosen events by domain: what negatives avoid.

    chosen: (N,) bool. -> own_D (U, H) int32: ascending indices within the domain from 0, padded on
    the right with the largest int32; n_own_D (U,).  drop_last: leave the domain's last item out,
    because it is not in the pool (Q7).
    """
    arrays, row_of = {}, np.full(log.n_users, -1)
    row_of[users] = np.arange(len(users))
    for d, name in enumerate(DOMAINS):
        n_items = log.n_items[d]
        event = np.flatnonzero(chosen & (log.domain == d) & (row_of[log.user] >= 0))
        local = _local(log, event, d) - 1
        pair = np.unique(row_of[log.user[event]].astype(np.int64) * n_items + local)
        row, local = np.divmod(pair, n_items)
        kept = local < n_items - drop_last
        arrays[f"own_{name}"] = _ragged(len(users), row[kept], local[kept], fill=NO_ITEM)
        counts = np.bincount(row[kept], minlength=len(users))
        arrays[f"n_own_{name}"] = counts.astype(np.int32)
    return arrays


def in_training(log: InteractionLog, split: Split) -> np.ndarray:
    """(N,) bool: events of training parts."""
    return _position(log) < split.n_train[log.user]


def in_window(log: InteractionLog, split: Split, length: int) -> np.ndarray:
    """(N,) bool: events of the windows of training parts."""
    return in_training(log, split) & (_position(log) >= split.n_train[log.user] - length - 1)


def pair_pools(log: InteractionLog, split: Split, users: np.ndarray) -> dict[str, np.ndarray]:
    """Where L_reg draws its pairs: the training parts without their last event, by domain.

    pool_D: (N_D,) joint ids, a user's events one after the other; first_D, n_pool_D (U,): a user's
    place and number in it.
    """
    arrays = {}
    early = _position(log) < (split.n_train - 1)[log.user]
    for d, name in enumerate(DOMAINS):
        event = np.flatnonzero(early & (log.domain == d))
        count = np.bincount(log.user[event], minlength=log.n_users)
        first = np.cumsum(count) - count
        arrays[f"pool_{name}"] = np.append(log.item[event], 0).astype(np.int32)  # never empty
        arrays[f"first_{name}"] = first[users].astype(np.int32)
        arrays[f"n_pool_{name}"] = count[users].astype(np.int32)
    return arrays


def _window(log, users, end, length):
    """Events of W, the last length + 1 of the users' first `end` events: (event, row, column).

    The last event of W stands in column `length`, one behind the inputs.
    """
    row_of = np.full(log.n_users, -1)
    row_of[users] = np.arange(len(users))
    row = row_of[log.user]
    column = np.where(row >= 0, length - (end[row] - 1 - _position(log)), -1)
    event = np.flatnonzero((row >= 0) & (column >= 0) & (column <= length))
    return event, row[event], column[event]


def _local(log, event, domain):
    """A domain's own ids, from 1."""
    return log.item[event] - log.n_items[0] * domain


def _scatter_inputs(shape, row, column, values):
    inputs = column < shape[1]
    return _scatter(shape, (row[inputs], column[inputs]), values[inputs])


def _domain_stream(shape, row, column, items, name):
    """seq, pos, time and pair of one domain, whose items in W these are, in order."""
    same = row[1:] == row[:-1]
    at = np.flatnonzero(same)  # tokens that have a next item of the domain: its inputs
    count = np.bincount(row[at], minlength=shape[0])
    rank = np.arange(len(at)) - (np.cumsum(count) - count)[row[at]]
    place = (row[at], shape[1] - count[row[at]] + rank)
    return {
        f"seq_{name}": _scatter(shape, place, items[at]),
        f"pos_{name}": _scatter(shape, place, items[at + 1]),
        f"time_{name}": _scatter(shape, place, column[at], fill=-1),
        f"pair_{name}": _scatter(shape, place, column[at + 1] - 1, fill=-1),
    }
