"""The tables that LLM4CDSR reads, made from item embeddings: principal components and profiles.

A user's profile is the mean embedding of its history. The official profile is a language model's
summary of it, embedded; the mean needs no service and takes the same place.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from oa_jax.data.log import InteractionLog
from oa_jax.data.splits import Split
from oa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tables:
    """Frozen inputs, aligned with a log, without rows for padding; all float32.

    global_table: (nA+nB, E), row i is item id i+1.  local_a, local_b: (nA, D), (nB, D).
    users: (U, V), row u is user u.  metadata: where they come from, for the run's fingerprints.
    """

    global_table: np.ndarray
    local_a: np.ndarray
    local_b: np.ndarray
    users: np.ndarray
    metadata: dict


def make_tables(
    items_IxE: np.ndarray,
    log: InteractionLog,
    split: Split,
    width: int,
    global_width: int,
    profile_sees_validation: bool = False,
) -> Tables:
    """Tables from the embeddings of all items (specs llm4cdsr §1.3, §1.4).

    Local tables are the first `width` principal components of a domain, the global table the first
    `global_width` of both together. profile_sees_validation: quirk Q12.
    """
    n_a = log.n_items[0]
    n_history = history_lengths(split, profile_sees_validation)
    return Tables(
        principal_components(items_IxE, global_width, "data.global_width"),
        principal_components(items_IxE[:n_a], width, "model.d_embed"),
        principal_components(items_IxE[n_a:], width, "model.d_embed"),
        mean_profiles(items_IxE, log, n_history),
        {"embeddings": hashlib.sha256(np.ascontiguousarray(items_IxE, "<f4")).hexdigest()[:16]},
    )


def history_lengths(split: Split, profile_sees_validation: bool) -> np.ndarray:
    """(U,): leading events of each user that its profile may know. No target is among them, but
    with Q12 the validation target is where the user also has a test target."""
    target = np.where(split.val >= 0, split.val, split.test)
    history = np.where(split.n_train > 0, split.n_train, np.maximum(target, 0))
    if profile_sees_validation:
        both = (split.val >= 0) & (split.test >= 0)
        history = np.where(both, split.test, history)
    return history


def mean_profiles(items_IxE, log: InteractionLog, n_history) -> np.ndarray:
    """(U, E): mean embedding of each user's first `n_history` events; 0 without any."""
    place = np.arange(len(log.user)) - log.offsets[log.user]
    event = np.flatnonzero(place < n_history[log.user])
    user, item = log.user[event], log.item[event] - 1
    # By column: an (events, E) array of a large log would not fit.
    sums = [np.bincount(user, column[item], log.n_users) for column in items_IxE.T]
    return (np.stack(sums, 1) / np.maximum(n_history, 1)[:, None]).astype(np.float32)


def principal_components(rows_NxE: np.ndarray, width: int, field: str = "width") -> np.ndarray:
    """(N, width) float32: centred rows in their first principal directions, each of them with its
    largest weight positive, so that the result is unique. Raises UserError if there are fewer."""
    most = min(rows_NxE.shape)
    if width > most:
        raise UserError(f"--config.{field}={width}: expected at most {most}, the embeddings' rank")
    centred = rows_NxE.astype(np.float64) - rows_NxE.mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    vectors = vectors[:, ::-1][:, :width]
    largest = np.abs(vectors).argmax(0)
    vectors = vectors * np.sign(vectors[largest, np.arange(width)])
    return (centred @ vectors).astype(np.float32)
