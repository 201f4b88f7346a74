"""Sampled candidates: every user's target beside negatives that any run on any machine draws again.

Nothing here knows a training seed. The candidates of a user follow from the data, the split and
the user id alone, so that all seeds, models and resumed runs are ranked against the same items.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from oa_jax.errors import UserError
from oa_jax.fields import checked, whole


def draw_candidates(
    fingerprint: str,
    split: str,
    users_R: np.ndarray,
    targets_R: np.ndarray,
    seen: Sequence[np.ndarray],
    n_items: tuple[int, int],
    n_negatives: int = 999,
    pool_b_from_last_a: bool = False,
) -> np.ndarray:
    """Target and negatives of every row: (R, 1 + n_negatives) int32, column 0 the target.

    The negatives of a row are distinct and uniform over the items of the target's domain, less
    its target and its `seen` items (of each row, ids of either domain in any order, 0 where empty:
    a table, or arrays of any lengths). Pool A is
    1..nA, pool B is nA+1..nA+nB, where `n_items` = (nA, nB). With `pool_b_from_last_a` pool B is
    nA..nA+nB and its extra first element, an item of A, is never excluded, even when the user owns
    it: quirk Q1 of oa_jax/backbones/README.md.

    A row depends on the fingerprint of the log, the split, the switch, its own user id, target
    and seen items: not on the other rows nor on their order. Rows of domain A are the same with
    and without the switch, which keeps the two protocols comparable user by user. numpy may
    change the stream behind `Generator.choice` in a new release; `candidates_digest` shows it.

    Raises UserError naming `evaluate.n_negatives` and the most that every pool has, or when the
    arrays differ in length or a target is not an item.
    """
    n_negatives = checked("n_negatives", n_negatives, whole(999, "", 0))
    targets_R = np.asarray(targets_R)
    if not len(users_R) == len(targets_R) == len(seen):
        raise UserError(
            f"rows: {len(users_R)} users, {len(targets_R)} targets, {len(seen)} histories"
        )
    if not np.isin(targets_R, np.arange(1, 1 + sum(n_items))).all():
        found = f"{targets_R.min()}..{targets_R.max()}"
        raise UserError(f"targets in {found}, expected 1..{sum(n_items)}")
    words = _words(fingerprint, split)
    out_RxK = np.empty((len(targets_R), 1 + n_negatives), np.int32)
    out_RxK[:, 0] = targets_R
    for row, (user, target) in enumerate(zip(users_R, targets_R, strict=True)):
        begin, n_eligible, excluded = _pool(target, seen[row], n_items, pool_b_from_last_a)
        if n_eligible < n_negatives:
            fewest, domain = min(
                (_pool(of, taken, n_items, pool_b_from_last_a)[1], "AB"[int(of > n_items[0])])
                for of, taken in zip(targets_R, seen, strict=True)
            )
            raise UserError(
                f"--config.evaluate.n_negatives={n_negatives}: a user has {fewest} items of domain "
                f"{domain} to draw from: expected at most {fewest}"
            )
        bits = np.random.PCG64(np.random.SeedSequence([*words, int(user)]))
        draw = np.random.Generator(bits).choice(n_eligible, n_negatives, replace=False)
        # From the r-th eligible number to its id: excluded[j] - j of them lie below excluded[j],
        # which r passes when it is not below that.
        below = excluded - begin - np.arange(len(excluded))
        out_RxK[row, 1:] = begin + draw + np.searchsorted(below, draw, side="right")
    return out_RxK


def donors(fingerprint: str, split: str, n_rows: int) -> np.ndarray:
    """(R,) another row for each row, every row once: one random cycle, by the data and the split.

    Raises UserError where there is no other row.
    """
    if n_rows < 2:
        raise UserError(f"gca.source=shuffled: {n_rows} user in {split}: expected two or more")
    order = np.random.default_rng(_words(fingerprint, f"{split}/donors")).permutation(n_rows)
    out = np.empty(n_rows, np.int64)
    out[order] = np.roll(order, 1)
    return out


def _words(fingerprint, split):
    """Eight 32-bit words. A hash, because fingerprints and split names are any text; the length
    keeps ("ab", "c") and ("a", "bc") apart whatever characters the texts hold."""
    digest = hashlib.sha256(f"{len(fingerprint)}:{fingerprint}{split}".encode()).digest()
    return np.frombuffer(digest, "<u4").tolist()


def _pool(target, seen_H, n_items, pool_b_from_last_a):
    """First id of the pool, how many of its ids are eligible, and those that are not, ascending."""
    in_b, (n_a, n_b) = target > n_items[0], n_items
    first, last = (n_a + 1, n_a + n_b) if in_b else (1, n_a)
    items = np.unique(np.append(seen_H, target))
    excluded = items[(items >= first) & (items <= last)]
    # Quirk Q1: the official pool begins one id early, its exclusion list does not.
    begin = first - int(in_b and pool_b_from_last_a)
    return begin, last + 1 - begin - len(excluded), excluded


def candidates_digest(candidates_RxK: np.ndarray) -> str:
    """16 hex digits of the content: equal candidates, row order included, have equal digests."""
    digest = hashlib.sha256(repr(candidates_RxK.shape).encode())
    digest.update(np.ascontiguousarray(candidates_RxK, dtype="<i4").tobytes())
    return digest.hexdigest()[:16]
