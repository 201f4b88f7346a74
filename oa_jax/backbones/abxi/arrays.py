"""ABXI's model inputs on the host: three streams per user, cut from a log and a split.

Shapes: U users, R users with a target, L length, N events of the log, H longest history.
"""

import numpy as np

from oa_jax.events.log import InteractionLog
from oa_jax.events.rows import end_columns, evaluation_rows, scatter
from oa_jax.events.split import Split


def training_arrays(log: InteractionLog, split: Split, length: int) -> dict[str, np.ndarray]:
    """Inputs and targets of the training part u_1..u_m of every user.

    seq_x: (U, L) the merged inputs x_p = u_p, p = 1..m-1.
    gt: (U, L) the targets gt_p = u_{p+1}.
    seq_a: (U, L) task-guided alignment: at the positions whose target is in A the most recent A
        item among x_1..x_p, elsewhere 0; seq_b likewise for B. A domain without a usable target
        gives a row of zeros, where the official code fails (Q17).

    All int32, left-padded with 0, trimmed to the last L columns after the alignment, so an entry
    may stem from an item that was itself trimmed away.
    """
    column = length - (split.n_train - 1)[log.user] + log.position
    event = np.flatnonzero((column >= 0) & (column < length))
    place, shape = (log.user[event], column[event]), (log.n_users, length)
    arrays = {
        "seq_x": scatter(shape, place, log.item[event]),
        "gt": scatter(shape, place, log.item[event + 1]),
    }
    for domain, letter in enumerate("ab"):
        source = _latest(log, domain)[event]
        aligned = (log.domain[event + 1] == domain) & (source >= 0)
        values = np.where(aligned, log.item[source], 0)
        arrays[f"seq_{letter}"] = scatter(shape, place, values)
    return arrays


def evaluation_arrays(
    log: InteractionLog, split: Split, which: str, length: int
) -> dict[str, np.ndarray]:
    """Histories and targets of the users that have a target in `which`, 'val' or 'test'.

    user, target, domain (R,), seen: see `events.rows.evaluation_rows`.
    seq_x: (R, L) int32, the history, left-padded with 0, trimmed to its last L events.
    seq_a, seq_b: (R, L) int32, all items of the domain in order, without gaps. They are cut from
        the untrimmed history, so they may reach further back than seq_x (Q18).
    until_a, until_b: (R, L) int32, for each entry of the stream the last column of seq_x that
        lies before the user's next item of the same domain; L-1 for the last entry of the domain;
        -1 where that column was trimmed away and at padding. In training an A entry stands at the
        position p whose next item is in A and may look at x_1..x_p: this is the same horizon for
        the streams without gaps.
    """
    arrays, place, row, event = evaluation_rows(log, split, which)
    shape, item = (len(place), length), log.item[event]
    column = end_columns(row, *shape)
    arrays["seq_x"] = scatter(shape, (row, column), item)
    for domain, letter in enumerate("ab"):
        mine = log.domain[event] == domain
        at = row[mine], end_columns(row[mine], *shape)
        before_next = np.maximum(np.roll(column[mine], -1) - 1, -1)
        until = np.where(at[1] == length - 1, length - 1, before_next)
        arrays[f"seq_{letter}"] = scatter(shape, at, item[mine])
        arrays[f"until_{letter}"] = scatter(shape, at, until, fill=-1)
    return arrays


def target_counts(log: InteractionLog, split: Split, length: int) -> np.ndarray:
    """(2, U): how many targets of A and of B `training_arrays` has of each user."""
    n_train, position = split.n_train[log.user], log.position
    is_target = (position >= np.maximum(n_train - length, 1)) & (position < n_train)
    of_domain = [is_target & (log.domain == domain) for domain in (0, 1)]
    return np.stack([np.bincount(log.user[mask], minlength=log.n_users) for mask in of_domain])


def _latest(log, domain):
    """(N,) for every event the row of its user's latest event of the domain so far, or -1."""
    rows = np.arange(len(log.user))
    latest = np.maximum.accumulate(np.where(log.domain == domain, rows, -1))
    return np.where(latest >= log.offsets[log.user], latest, -1)
