"""CDSRNP's model inputs on the host, cut from a log and a split.

A row is a user with a target item of one domain and the history before it. Shapes: R rows, L
length of a domain's stream, M length of the merged stream, H the longest history of all rows.
"""

from typing import NamedTuple

import numpy as np

from oa_jax.events.log import InteractionLog, first_events
from oa_jax.events.rows import Ragged, evaluation_rows, streams
from oa_jax.events.split import Split


class Targets(NamedTuple):
    """user, place (R,): the user, and the place of the target in its sequence."""

    user: np.ndarray
    place: np.ndarray


def training_rows(log: InteractionLog, split: Split, targets: str) -> Targets:
    """Targets of the training parts that have a history, ordered by user and place.

    targets: "each_domain", a user's last training event of each domain; "last", the last of all,
    for sequences that are made for one target, as AMID's; "every", all that have a history: several
    times the rows, and the signal, of the other two.
    """
    event = np.flatnonzero(split.in_training(log))
    if targets == "last":
        event = np.flatnonzero(log.position == split.n_train[log.user] - 1)
    elif targets == "each_domain":
        newest = event[::-1]
        _, first = np.unique(2 * log.user[newest] + log.domain[newest], return_index=True)
        event = np.sort(newest[first])
    rows = Targets(log.user[event], log.position[event])
    kept = history_counts(log, rows).any(0)
    return Targets(*(of_rows[kept] for of_rows in rows))


def target_of(log: InteractionLog, rows: Targets) -> np.ndarray:
    """(R,) joint id of each row's target."""
    return log.item[log.offsets[rows.user] + rows.place]


def history(log: InteractionLog, rows: Targets, length: int, merged_length: int) -> dict:
    """`streams` of what came before each target, earlier copies of it left out."""
    return streams(log, *_past(log, rows), len(rows.user), length, merged_length)


def history_counts(log: InteractionLog, rows: Targets) -> np.ndarray:
    """(2, R): items of A and of B that came before each target, copies of it left out."""
    row, event = _past(log, rows)
    of_domain = [row[log.domain[event] == d] for d in (0, 1)]
    return np.stack([np.bincount(own, minlength=len(rows.user)) for own in of_domain])


def evaluation_arrays(
    log: InteractionLog, split: Split, which: str, length: int, merged_length: int
) -> dict[str, np.ndarray]:
    """Rows of the users that have a target in `which`, 'val' or 'test'.

    user, target, domain (R,), seen: see `events.rows.evaluation_rows`.  Streams: see
    `events.rows.streams`.  n_history (R,): events before the target, copies of it left out.
    """
    arrays, place, _, _ = evaluation_rows(log, split, which)
    rows = Targets(arrays["user"], place)
    arrays["n_history"] = history_counts(log, rows).sum(0).astype(np.int32)
    return history(log, rows, length, merged_length) | arrays


def is_overlapped(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """(R,) bool: rows whose history holds items of both domains."""
    return (arrays["seq_A"][:, -1] != 0) & (arrays["seq_B"][:, -1] != 0)


def trained_items(log: InteractionLog, split: Split) -> Ragged:
    """Joint ids of the training events of each user."""
    trained = split.in_training(log)
    return Ragged.of(log.user[trained], log.item[trained], log.n_users)


def persons(log: InteractionLog, split: Split, rows: Targets) -> np.ndarray:
    """(R,) int32: rows with one number have the same training events, so they are one person's.

    AMID gives an overlapped user two sequences, one for each domain of the target.
    """
    items, key_of = trained_items(log, split), {}
    number = {
        u: key_of.setdefault(np.sort(items[u]).tobytes(), len(key_of)) for u in np.unique(rows.user)
    }
    return np.array([number[u] for u in rows.user], np.int32)


def _past(log, rows):
    """(row, event) of every event before each row's target that is not of the target's item."""
    row, event = first_events(log, rows.user, rows.place)
    kept = log.item[event] != target_of(log, rows)[row]
    return row[kept], event[kept]
