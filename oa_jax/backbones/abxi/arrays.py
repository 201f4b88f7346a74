"""ABXI's model inputs on the host: three streams per user, cut from a log and a split.

Shapes: U users, R users with a target, N events of the log, H longest history. Everything is
built with whole-log array operations; an event's place in an output is computed, then scattered.
"""

from __future__ import annotations

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split

DOMAIN_LETTERS = ("a", "b")
# Larger than every index, so that a padded row stays sorted for binary search.
NO_ITEM = np.iinfo(np.int32).max


def training_arrays(log: InteractionLog, split: Split, length: int) -> dict[str, np.ndarray]:
    """Inputs and targets of the training part u_1..u_m of every user (spec 2.1).

    seq_x: (U, length) the merged inputs x_p = u_p, p = 1..m-1.
    gt: (U, length) the targets gt_p = u_{p+1}.
    seq_a: (U, length) task-guided alignment: at the positions whose target is in A the most
        recent A item among x_1..x_p, elsewhere 0; seq_b likewise for B. A domain without a usable
        target gives a row of zeros, where the official code fails (Q17).

    All int32, left-padded with 0, trimmed to the last `length` columns after the alignment, so
    an entry may stem from an item that was itself trimmed away.
    """
    _check_length(length)
    n_inputs = (split.n_train - 1)[log.user]
    position = _position(log)
    column = length - n_inputs + position
    event = np.flatnonzero((position < n_inputs) & (column >= 0))
    place = (log.user[event], column[event])
    shape = (log.n_users, length)
    arrays = {
        "seq_x": _scatter(shape, place, log.item[event]),
        "gt": _scatter(shape, place, log.item[event + 1]),
    }
    for domain, letter in enumerate(DOMAIN_LETTERS):
        source = _latest(log, domain)[event]
        aligned = (log.domain[event + 1] == domain) & (source >= 0)
        values = np.where(aligned, log.item[source], 0)
        arrays[f"seq_{letter}"] = _scatter(shape, place, values)
    return arrays


def evaluation_arrays(
    log: InteractionLog, split: Split, which: str, length: int
) -> dict[str, np.ndarray]:
    """Histories and targets of the users that have a target in `which`, 'val' or 'test'.

    user: (R,) int32, ascending.  target: (R,) int32 item.  domain: (R,) int8, 0 A and 1 B.
    seq_x: (R, length) int32, the history, left-padded with 0, trimmed to its last `length` events.
    seq_a, seq_b: (R, length) int32, all items of the domain in order, without gaps. They are cut
        from the untrimmed history, so they may reach further back than seq_x (Q18).
    until_a, until_b: (R, length) int32, for each entry of the stream the last column of seq_x
        that lies before the user's next item of the same domain; length-1 for the last entry of
        the domain; -1 where that column was trimmed away and at padding. In training an A entry
        stands at the position p whose next item is in A and may look at x_1..x_p: this is the
        same horizon for the streams without gaps.
    seen: (R, H) int32, all items of the history except the target itself, oldest first, padded
        on the right with 0. Trimming does not shorten it.

    Raises ValueError for another `which`.
    """
    _check_length(length)
    if which not in ("val", "test"):
        raise ValueError(f"which: found {which!r}, expected 'val' or 'test'")
    place = getattr(split, which)
    user = np.flatnonzero(place >= 0)
    target = log.item[log.offsets[user] + place[user]]
    position = _position(log)
    event = np.flatnonzero(position < place[log.user])
    row, item = np.searchsorted(user, log.user[event]), log.item[event]
    column = length - place[log.user[event]] + position[event]
    arrays = {
        "user": user.astype(np.int32),
        "target": target,
        "domain": log.domain[log.offsets[user] + place[user]],
        "seq_x": _scatter((len(user), length), (row, column), item),
        "seen": _ragged(len(user), row[item != target[row]], item[item != target[row]], fill=0),
    }
    for domain, letter in enumerate(DOMAIN_LETTERS):
        mine = log.domain[event] == domain
        stream, until = _compact(len(user), length, row[mine], column[mine], item[mine])
        arrays[f"seq_{letter}"], arrays[f"until_{letter}"] = stream, until
    return arrays


def target_counts(log: InteractionLog, split: Split, length: int) -> np.ndarray:
    """(2, U): how many targets of A and of B `training_arrays` has of each user."""
    n_train, position = split.n_train[log.user], _position(log)
    is_target = (position >= np.maximum(n_train - length, 1)) & (position < n_train)
    of_domain = [is_target & (log.domain == domain) for domain in (0, 1)]
    return np.stack([np.bincount(log.user[mask], minlength=log.n_users) for mask in of_domain])


def user_history(
    log: InteractionLog, split: Split, widths: tuple[int, int] = (1, 1)
) -> dict[str, np.ndarray]:
    """Items of every user's training part by domain: what negative sampling leaves out (spec 2.3).

    a: (U, HA) int32, b: (U, HB) int32: sorted, distinct indices within the domain, counted from 0
        (item-1 in A, item-1-nA in B), padded on the right with the largest int32. As wide as the
        longest, and at least `widths`.
    n_a, n_b: (U,) int32, how many of them are real.
    """
    arrays = {}
    for domain, letter in enumerate(DOMAIN_LETTERS):
        user, local = _own_items(log, split, domain)
        arrays[letter] = _ragged(log.n_users, user, local, NO_ITEM, widths[domain])
        arrays[f"n_{letter}"] = np.bincount(user, minlength=log.n_users).astype(np.int32)
    return arrays


def history_widths(log: InteractionLog, split: Split) -> tuple[int, int]:
    """The most distinct items of A and of B in one user's training part."""
    users = (_own_items(log, split, domain)[0] for domain in (0, 1))
    return tuple(int(np.bincount(user, minlength=1).max()) for user in users)


def _own_items(log, split, domain):
    """Users, ascending, and their distinct training items of the domain, ascending from 0."""
    trained = _position(log) < split.n_train[log.user]
    event = np.flatnonzero(trained & (log.domain == domain))
    n_items = log.n_items[domain]
    local = log.item[event] - 1 - (log.n_items[0] if domain else 0)
    return np.divmod(np.unique(log.user[event].astype(np.int64) * n_items + local), n_items)


def _check_length(length):
    if length < 1:
        raise UserError(f"length: found {length}, expected at least 1")


def _position(log):
    """(N,) place of every event in its user's sequence, from 0."""
    return np.arange(len(log.user)) - log.offsets[log.user]


def _latest(log, domain):
    """(N,) for every event the row of its user's latest event of the domain so far, or -1."""
    rows = np.arange(len(log.user))
    latest = np.maximum.accumulate(np.where(log.domain == domain, rows, -1))
    return np.where(latest >= log.offsets[log.user], latest, -1)


def _rank(row, n_rows):
    """Place of every entry among the entries of its row; `row` is ascending. And (R,) counts."""
    count = np.bincount(row, minlength=n_rows)
    return np.arange(len(row)) - (np.cumsum(count) - count)[row], count


def _scatter(shape, place, values, fill=0):
    """int32 array of `shape` with values at (row, column); columns below 0 are trimmed away."""
    array = np.full(shape, fill, np.int32)
    row, column = place
    kept = column >= 0
    array[row[kept], column[kept]] = values[kept]
    return array


def _ragged(n_rows, row, values, fill, width=1):
    """(n_rows, longest) int32, values from the left; `row` is ascending. At least `width` wide."""
    rank, count = _rank(row, n_rows)
    return _scatter((n_rows, max(width, 1, count.max(initial=0))), (row, rank), values, fill)


def _compact(n_rows, length, row, merged, item):
    """Stream without gaps and its horizons, both (n_rows, length), of one domain's events.

    row, merged, item: row of the output, column on the merged axis (below 0: trimmed away) and
    item of every history event of the domain, in the order of the log.
    """
    rank, count = _rank(row, n_rows)
    column = length - count[row] + rank
    last = rank == count[row] - 1
    before_next = np.roll(merged, -1) - 1
    until = np.where(last, length - 1, np.maximum(before_next, -1))
    shape = (n_rows, length)
    return (
        _scatter(shape, (row, column), item),
        _scatter(shape, (row, column), until, fill=-1),
    )
