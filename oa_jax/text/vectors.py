"""What becomes of item vectors: fewer columns by PCA, and the mean of a user's history.

The official profile of a user embeds the summary of an LLM; such a file can be imported. Without
one the profile is the mean vector of what the user took before its targets.
"""

import numpy as np

from oa_jax.errors import UserError
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

    event = np.flatnonzero((log.position < n_history[log.user]) & has_vector[log.item - 1])
    user, item = log.user[event], log.item[event] - 1
    weight, shape = 1.0 / np.bincount(user)[user], (log.n_users, len(vectors))
    taken = csr_array((weight, (user, item)), shape=shape)  # repeats add up
    table, begins = np.asarray(vectors, np.float64), range(0, log.n_users, USERS_AT_ONCE)
    means = (taken[begin : begin + USERS_AT_ONCE] @ table for begin in begins)
    return np.concatenate([rows.astype(np.float32) for rows in means])


def pca(rows_NxW: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """(N, width) float32: centred rows on their first `width` principal axes, not whitened; and the
    share of the variance that they keep, 0 to 1. width: at most `widest(rows_NxW)`.

    Deterministic, in float64: an exact solver (the official default may draw at random, unseeded),
    and the largest entry of every axis, by magnitude, is positive.
    """
    centred = np.asarray(rows_NxW, np.float64)
    centred = centred - centred.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, ::-1][:, :width]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(width)])
    total = variances.sum()
    kept = float(variances[::-1][:width].sum() / total) if total > 0 else 0.0
    return (centred @ axes).astype(np.float32), kept


def widest(rows_NxW: np.ndarray) -> int:
    """How many principal axes the rows can have: N centred rows span N - 1 at most."""
    return min(len(rows_NxW) - 1, rows_NxW.shape[1])


def capped(flag: str, width: int, most: int, why: str, say) -> int:
    """`width`, or `most` with a line that says so; UserError where either is below 1."""
    if width < 1:
        raise UserError(f"--{flag}={width}: expected a whole number of at least 1")
    if most < 1:
        raise UserError(f"--{flag}={width}: {why} allow no principal axis: expected 2 or more")
    if width > most:
        say(f"--{flag}={width}: cut to {most}, which is what {why} allow")
    return min(width, most)
