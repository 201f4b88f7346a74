"""LLM4CDSR's model inputs on the host, cut from a log and a split.

Shapes: U training rows, R evaluation rows, L length, N events of the log, H a longest history.
A window W is the last L + 1 events of a sequence. Of each domain the first item of W is never a
target: a *pair* is a later item together with the event before it in W.
"""

import numpy as np

from oa_jax.events.log import DOMAINS, InteractionLog, first_events
from oa_jax.events.rows import end_columns, evaluation_rows, lists, scatter
from oa_jax.events.split import Split


def training_users(log: InteractionLog, split: Split) -> np.ndarray:
    """(U,) users with a training row: any training part, if their sequence has 3 events or more.

    A part of one event makes a row without inputs (Q17).
    """
    return np.flatnonzero((split.n_train >= 1) & (np.diff(log.offsets) >= 3)).astype(np.int32)


def training_arrays(log: InteractionLog, split: Split, length: int) -> dict[str, np.ndarray]:
    """Training rows of the `training_users`, all (U, L) int32, left-padded with 0.

    seq, pos: joint ids of W without its last and without its first event.
    domain_mask: domain of pos where it makes a pair, otherwise -1.
    Of each domain D, in its own ids from 1: seq_D, pos_D, its items in W without the last and
    without the first; time_D, the column of seq at which the token stands; pair_D, the column
    before the token's target: where stream x predicts the same item.  -1 at padding.
    """
    users = training_users(log, split)
    event, row, column = _window(log, users, split.n_train[users], length)
    shape = (len(users), length)
    later = np.flatnonzero(np.r_[False, row[1:] == row[:-1]])  # not the first of its window
    arrays = {
        "seq": scatter(shape, (row, column), log.item[event]),
        "pos": scatter(shape, (row[later], column[later] - 1), log.item[event[later]]),
        "domain_mask": np.full(shape, -1, np.int32),
    }
    for d, name in enumerate(DOMAINS):
        at = np.flatnonzero(log.domain[event] == d)
        stream = _domain_stream(shape, row[at], column[at], log.local[event[at]], name)
        token = np.nonzero(stream[f"pair_{name}"] >= 0)
        arrays["domain_mask"][token[0], stream[f"pair_{name}"][token]] = d
        arrays |= stream
    return arrays


def evaluation_arrays(
    log: InteractionLog, split: Split, which: str, length: int, drop_last_of_other: bool = True
) -> dict[str, np.ndarray]:
    """Histories and targets of the users that have a target in `which`, 'val' or 'test'.

    user, target, domain (R,), seen: see `events.rows.evaluation_rows`.  seq, seq_D, time_D
    (R, L) as in training, W ending with the target.  n_history (R,): events before the target.
    drop_last_of_other: the stream of the domain that is not the target's ends one item early, as
    in the official code; it matters to `gca.source=other` alone.
    """
    arrays, place, _, _ = evaluation_rows(log, split, which)
    event, row, column = _window(log, arrays["user"], place + 1, length)
    shape = (len(place), length)
    arrays |= {"seq": scatter(shape, (row, column), log.item[event]), "n_history": place}
    for d, name in enumerate(DOMAINS):
        of_stream = log.domain[event] == d
        if not drop_last_of_other:  # the target of the other domain, dropped in the last's stead
            of_stream |= column == length
        at = np.flatnonzero(of_stream)
        stream = _domain_stream(shape, row[at], column[at], log.local[event[at]], name)
        arrays |= {k: stream[k] for k in (f"seq_{name}", f"time_{name}")}
    return arrays


def in_window(log: InteractionLog, split: Split, length: int) -> np.ndarray:
    """(N,) bool: events of the windows of training parts."""
    return split.in_training(log) & (log.position >= split.n_train[log.user] - length - 1)


def token_counts(log: InteractionLog, split: Split, length: int) -> np.ndarray:
    """(3, U): tokens of each user in streams x, A and B: its events in W, less the last of each."""
    event = np.flatnonzero(in_window(log, split, length))
    masks = [log.domain[event] < 2, *(log.domain[event] == d for d in (0, 1))]
    counts = [np.bincount(log.user[event[mask]], minlength=log.n_users) for mask in masks]
    return np.maximum(np.stack(counts) - 1, 0)


def pair_pools(log: InteractionLog, split: Split) -> dict[str, np.ndarray]:
    """Where L_reg draws its pairs: the training parts without their last event, by domain.

    -> lists pool_A, pool_B of joint ids, for every user of the log.
    """
    early, arrays = log.position < (split.n_train - 1)[log.user], {}
    for d, name in enumerate(DOMAINS):
        event = np.flatnonzero(early & (log.domain == d))
        arrays |= lists(f"pool_{name}", log.user[event], log.item[event], log.n_users)
    return arrays


def _window(log, users, ends, length):
    """Events of W, the last length + 1 of the users' first `ends` events: (event, row, column).

    The last event of W stands in column `length`, one behind the inputs.
    """
    row, event = first_events(log, users, ends)
    column = end_columns(row, len(users), length + 1)
    kept = column >= 0
    return event[kept], row[kept], column[kept]


def _domain_stream(shape, row, column, items, name):
    """seq, pos, time and pair of one domain, whose items in W these are, in order."""
    at = np.flatnonzero(row[1:] == row[:-1])  # tokens that have a next item of the domain
    place = (row[at], end_columns(row[at], *shape))
    return {
        f"seq_{name}": scatter(shape, place, items[at]),
        f"pos_{name}": scatter(shape, place, items[at + 1]),
        f"time_{name}": scatter(shape, place, column[at], fill=-1),
        f"pair_{name}": scatter(shape, place, column[at + 1] - 1, fill=-1),
    }
