"""What the verifications share: relative errors, and the check of raw histories."""

from __future__ import annotations

import numpy as np

from oa_jax.errors import UserError


def relative(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value; inf if not finite."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if ours.shape != expected.shape or not (np.isfinite(ours) & np.isfinite(expected)).all():
        return float("inf")
    return float(np.max(np.abs(ours - expected)) / max(np.max(np.abs(expected)), 1e-30))


def step_error(
    ours: np.ndarray, expected: np.ndarray, gradient: np.ndarray, is_in_projection_bias: bool
) -> float:
    """`relative` of parameters after an Adam step, where its direction is sure.

    Adam divides by |g|: where a gradient is rounding noise, so is the direction of the step. The
    middle third of an in-projection's bias is the keys', whose true gradient is 0.
    """
    sure = (np.abs(gradient) > 1e-6) | (gradient == 0)
    if is_in_projection_bias:
        third = len(ours) // 3
        sure[third : 2 * third] = False
    return relative(np.where(sure, ours, 0), np.where(sure, expected, 0))


def largest(errors: dict[str, float]) -> tuple[int, float]:
    """(number of arrays, largest error)."""
    return len(errors), max(errors.values())


def check_offsets(path: str, fixture: dict[str, np.ndarray], n_events: int) -> None:
    """Raise UserError unless `raw/offsets` parts n_events events among users."""
    offsets = fixture.get("raw/offsets", np.zeros(0))
    good = offsets.ndim == 1 and offsets.size and offsets.dtype.kind in "iu"
    if not good or offsets[0] != 0 or offsets[-1] != n_events or (np.diff(offsets) < 1).any():
        raise UserError(f"{path}: raw/offsets: expected ascending whole numbers 0..{n_events}")
