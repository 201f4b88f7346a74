"""Item vectors reduced by PCA, and user profiles as means of item vectors.

The official profile of a user embeds a summary that an LLM wrote; a file of such profiles can be
imported. Otherwise the profile is the mean vector of the items that the user took before its
targets.
"""

import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog

USERS_AT_ONCE = 4096


def mean_profiles(
    log: InteractionLog, n_history: np.ndarray, vectors: np.ndarray, has_vector: np.ndarray
) -> np.ndarray:
    """Profiles (U, W) float32: mean vector of each user's first `n_history` events.

    An item that a user took twice counts twice. A user without such events has a zero vector.
    n_history: (U,) from `tables.history_of`: leaves out validation and test target (the official
        profile contains the validation target, Q12).
    vectors: (nA+nB, W), row i is item i+1. has_vector: (nA+nB,) bool, False for items without a
        text, which do not count.
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
    """The centred rows on their first `width` principal axes, (N, width) float32, not whitened; and
    the share of the variance that is kept, 0 to 1. width: at most `widest(rows_NxW)`.

    Deterministic: an exact solver in float64 (the official default may draw at random, unseeded).
    The entry of largest magnitude of every axis is positive.
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
    """The largest number of principal axes: N centred rows span at most N - 1."""
    return min(len(rows_NxW) - 1, rows_NxW.shape[1])


def capped(flag: str, width: int, most: int, why: str, say) -> int:
    """`width`, or `most` if smaller, which `say` then reports. UserError if either is below 1."""
    if width < 1:
        raise UserError(f"--{flag}={width}: expected a whole number of at least 1")
    if most < 1:
        raise UserError(f"--{flag}={width}: {why} allow no principal axis: expected 2 or more")
    if width > most:
        say(f"--{flag}={width}: cut to {most}, which is what {why} allow")
    return min(width, most)
