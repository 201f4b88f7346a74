"""Roles (training, target, context) of events, by the split of their data set."""

import hashlib

import numpy as np

from oa_jax.events.log import CONTEXT, TEST, TRAINING, VALIDATION


def from_end(user: np.ndarray) -> np.ndarray:
    """(N,) number of later events of the same user; `user` is ascending."""
    return np.searchsorted(user, user, side="right") - np.arange(len(user)) - 1


def leave_one_out_roles(user: np.ndarray) -> np.ndarray:
    """(N,) int8: a user's last event is TEST, the one before VALIDATION, the others TRAINING.

    All events of a user with fewer than 3 are CONTEXT.
    """
    role = np.array([TEST, VALIDATION, TRAINING])[np.minimum(from_end(user), 2)]
    return np.where(np.bincount(user)[user] < 3, CONTEXT, role).astype(np.int8)


def user_disjoint_roles(user: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(N,) int8: all events of a training user are TRAINING; the last event of another is a target.

    part: (U,) TRAINING, VALIDATION or TEST for every user. Events before a target are CONTEXT.
    """
    part = part[user]
    return np.where((part == TRAINING) | (from_end(user) == 0), part, CONTEXT).astype(np.int8)


def tenths(raw_users: list[str], purpose: str, test: bool = True) -> np.ndarray:
    """(U,) a part for each user: a tenth VALIDATION, a tenth TEST (if `test`), the rest TRAINING.

    The raw id decides, so all sequences of one raw user are in the same part.
    """
    names, person = np.unique(np.array(raw_users, object), return_inverse=True)
    tenth = (10 * hash_rank(names.tolist(), purpose) // len(names))[person]
    part = np.where(tenth == 0, VALIDATION, TRAINING)
    return np.where((tenth == 1) & test, TEST, part)


def hash_rank(texts: list[str], purpose: str) -> np.ndarray:
    """(n,) a random order of distinct texts; it depends only on them and on the purpose."""
    # A hash and no generator: the order of one text does not move when others come or go.
    keys = [hashlib.sha256(f"{purpose}:{text}".encode()).digest() for text in texts]
    rank = np.empty(len(texts), np.int64)
    rank[sorted(range(len(texts)), key=keys.__getitem__)] = np.arange(len(texts))
    return rank
