"""Sampled candidates: every user's target beside negatives that any run on any machine draws again.

Nothing here knows a training seed. The candidates of a user follow from the data, the split and
the user id alone, so that all seeds, models and resumed runs are ranked against the same items.
"""

from __future__ import annotations

import hashlib

import numpy as np

from oa_jax.errors import UserError


def draw_candidates(
    fingerprint: str,
    split: str,
    users_R: np.ndarray,
    targets_R: np.ndarray,
    seen_RxH: np.ndarray,
    n_items: tuple[int, int],
    n_negatives: int = 999,
    pool_b_from_last_a: bool = False,
) -> np.ndarray:
    """Target and negatives of every row: (R, 1 + n_negatives) int32, column 0 the target.

    The negatives of a row are distinct and uniform over the items of the target's domain, less
    the row's `seen` items and its target. `seen_RxH` holds item ids of either domain in any order,
    0 where empty; repeats are allowed. Pool A is 1..nA, pool B is nA+1..nA+nB, where
    `n_items` = (nA, nB). With `pool_b_from_last_a` pool B is nA..nA+nB and its extra first element,
    an item of A, is never excluded, even when the user owns it (ABXI spec §2.3, quirk Q1).

    A row depends on the fingerprint of the log, the split, the switch, its own user id, target
    and seen items: not on the other rows nor on their order. Rows of domain A are the same with
    and without the switch, which keeps the two protocols comparable user by user. numpy may
    change the stream behind `Generator.choice` in a new release; `candidates_digest` shows it.

    Raises UserError naming `evaluate.n_negatives` and the user whose pool is too small, ValueError
    when the arrays differ in length or a target is not an item.
    """
    targets_R = np.asarray(targets_R)
    seen_RxH = np.asarray(seen_RxH)
    if not len(users_R) == len(targets_R) == len(seen_RxH):
        raise ValueError(
            f"rows: {len(users_R)} users, {len(targets_R)} targets, {len(seen_RxH)} histories"
        )
    if len(targets_R) and not 1 <= targets_R.min() <= targets_R.max() <= sum(n_items):
        raise ValueError(
            f"targets in {targets_R.min()}..{targets_R.max()}, expected 1..{sum(n_items)}"
        )
    words = _seed_words(fingerprint, split)
    out_RxK = np.empty((len(targets_R), 1 + n_negatives), np.int32)
    out_RxK[:, 0] = targets_R
    for row, (user, target) in enumerate(zip(users_R, targets_R, strict=True)):
        pool, excludable = _pools(target, n_items, pool_b_from_last_a)
        excluded = _excluded(target, seen_RxH[row], excludable)
        n_eligible = len(pool) - len(excluded)
        if n_eligible < n_negatives:
            raise UserError(
                f"evaluate.n_negatives: user {user} has {n_eligible} eligible items in domain "
                f"{'AB'[int(target > n_items[0])]}, expected at least {n_negatives}"
            )
        bits = np.random.PCG64(np.random.SeedSequence([*words, int(user)]))
        draw = np.random.Generator(bits).choice(n_eligible, n_negatives, replace=False)
        out_RxK[row, 1:] = pool.start + _skip(draw, excluded - pool.start)
    return out_RxK


def candidates_digest(candidates_RxK: np.ndarray) -> str:
    """16 hex digits of the content: equal candidates, row order included, have equal digests."""
    digest = hashlib.sha256(repr(candidates_RxK.shape).encode())
    digest.update(np.ascontiguousarray(candidates_RxK, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]


def _seed_words(fingerprint: str, split: str) -> list[int]:
    """Eight 32-bit words. A hash, because fingerprints and split names are any text."""
    # The length keeps ("ab", "c") and ("a", "bc") apart whatever characters the texts hold.
    digest = hashlib.sha256(f"{len(fingerprint)}:{fingerprint}{split}".encode()).digest()
    return np.frombuffer(digest, "<u4").tolist()


def _pools(target: int, n_items: tuple[int, int], pool_b_from_last_a: bool) -> tuple[range, range]:
    """The ids to draw from, and those among them that a user's history can exclude."""
    n_a, n_b = n_items
    if target <= n_a:
        return range(1, n_a + 1), range(1, n_a + 1)
    domain_b = range(n_a + 1, n_a + n_b + 1)
    # Quirk Q1: the official pool begins one id early, its exclusion list does not.
    return (range(n_a, n_a + n_b + 1) if pool_b_from_last_a else domain_b), domain_b


def _excluded(target: int, seen_H: np.ndarray, excludable: range) -> np.ndarray:
    """Ascending distinct ids that the row must not draw."""
    items = np.unique(np.append(seen_H, target))
    return items[(items >= excludable.start) & (items < excludable.stop)]


def _skip(draw: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Map r in [0, eligible) to the r-th number from 0 that is not in ascending `excluded`."""
    # excluded[j] - j eligible numbers lie below excluded[j]: r passes it when r is not below that.
    return draw + np.searchsorted(excluded - np.arange(len(excluded)), draw, side="right")
