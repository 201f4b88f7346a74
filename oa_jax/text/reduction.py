"""PCA of item vectors to the widths that LLM4CDSR's tables have."""

from __future__ import annotations

import dataclasses

import numpy as np

from oa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Reduced:
    """Projected rows, float32, and the share of the variance that they keep, 0 to 1."""

    rows: np.ndarray
    explained: float


def pca(rows_NxW: np.ndarray, width: int) -> Reduced:
    """Centred rows on their first `width` principal axes, without whitening, in float64.

    Deterministic: an exact solver (the official default may draw at random, unseeded), and the
    largest entry of every axis, by magnitude, is positive.

    width: at most `widest(rows_NxW)`.
    """
    centred = np.asarray(rows_NxW, np.float64)
    centred = centred - centred.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, ::-1][:, :width]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(width)])
    total = variances.sum()
    explained = float(variances[::-1][:width].sum() / total) if total > 0 else 0.0
    return Reduced((centred @ axes).astype(np.float32), explained)


def widest(rows_NxW: np.ndarray) -> int:
    """How many principal axes the rows can have: N centred rows span N - 1 at most."""
    return min(len(rows_NxW) - 1, rows_NxW.shape[1])


def capped(flag: str, width: int, most: int, why: str, say) -> int:
    """`width`, or `most` with a line that says so.

    Raises UserError for a width below 1, and when the data allow none.
    """
    if width < 1:
        raise UserError(f"--{flag}={width}: expected a whole number of at least 1")
    if most < 1:
        raise UserError(f"--{flag}={width}: {why} allow no principal axis: expected 2 or more")
    if width > most:
        say(f"--{flag}={width}: cut to {most}, which is what {why} allow")
    return min(width, most)
