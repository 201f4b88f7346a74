"""User profiles: what a user took before its targets, as one vector.

The official profile embeds the summary of an LLM; such a file can be imported.
Without one the profile is the mean vector of the history.
"""

from __future__ import annotations

import numpy as np

from oa_jax.events.log import InteractionLog

USERS_AT_ONCE = 4096


def mean_profiles(
    log: InteractionLog, n_history: np.ndarray, vectors: np.ndarray, has_vector: np.ndarray
) -> np.ndarray:
    """(U, W) float32: mean vector of each user's first `n_history` events, repeats counted.

    n_history: (U,) as of `tables.history_of`: without validation and test target (the official
        profile holds the validation target, Q12). A user with nothing left has a zero vector.
    vectors: (nA+nB, W), row i is item i+1. has_vector: (nA+nB,) bool: items without a text do not
        count.
    """
    from scipy.sparse import csr_array

    place = np.arange(len(log.user)) - log.offsets[log.user]
    event = np.flatnonzero((place < n_history[log.user]) & has_vector[log.item - 1])
    user, item = log.user[event], log.item[event] - 1
    count = np.bincount(user, minlength=log.n_users)
    shape = (log.n_users, len(vectors))
    taken = csr_array((1.0 / count[user], (user, item)), shape=shape)  # repeats add up
    out = np.zeros((log.n_users, vectors.shape[1]), np.float32)
    table = np.asarray(vectors, np.float64)
    for begin in range(0, log.n_users, USERS_AT_ONCE):
        out[begin : begin + USERS_AT_ONCE] = taken[begin : begin + USERS_AT_ONCE] @ table
    return out
