"""PCA of item vectors to the widths that LLM4CDSR's tables have (specs llm4cdsr §1.3)."""

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
    from sklearn.decomposition import PCA  # imported here: a second, for this step only

    model = PCA(width, svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):  # equal rows: 0 of a variance of 0
        projected = model.fit_transform(np.asarray(rows_NxW, np.float64))
    at = np.argmax(np.abs(model.components_), 1)
    signs = np.sign(model.components_[np.arange(width), at])
    total = float(model.explained_variance_ratio_.sum())
    return Reduced((projected * signs).astype(np.float32), total if np.isfinite(total) else 0.0)


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
