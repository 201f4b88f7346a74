"""What comparisons with official codes share: relative errors, checks, grids of packed values."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optax

from oa_jax.errors import UserError

Arrays = dict[str, np.ndarray]
Errors = dict[str, tuple[int, float]]  # {quantity: (number of arrays, largest error)}


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


def check_offsets(path: str, fixture: Arrays, n_events: int) -> None:
    """Raise UserError unless `raw/offsets` parts n_events events among users."""
    offsets = fixture.get("raw/offsets", np.zeros(0))
    good = offsets.ndim == 1 and offsets.size and offsets.dtype.kind in "iu"
    if not good or offsets[0] != 0 or offsets[-1] != n_events or (np.diff(offsets) < 1).any():
        raise UserError(f"{path}: raw/offsets: expected ascending whole numbers 0..{n_events}")


def check_meta(path: str, meta: dict, whole: Iterable[str], real: Iterable[str]) -> None:
    """Raise UserError for a field of `meta` that is missing or is no such number."""
    kinds = dict.fromkeys(whole, (numbers.Integral, 1, "a whole number of at least 1"))
    kinds |= dict.fromkeys(real, (numbers.Real, float("-inf"), "a number"))
    for name, (kind, least, expected) in kinds.items():
        value = meta.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not value >= least:
            raise UserError(f"{path}: meta: {name} {value!r}: expected {expected}")


def check_arrays(path: str, fixture: Arrays, expected: dict[str, tuple[int | None, ...]]) -> None:
    """Raise UserError for an array that is missing, or has another shape (None: any size) or kind
    of values."""
    for name, shape in expected.items():
        if name not in fixture:
            raise UserError(f"{path}: no array {name!r}: expected it in a fixture")
        found = fixture[name]
        if len(found.shape) != len(shape) or any(
            size not in (None, there) for size, there in zip(shape, found.shape, strict=True)
        ):
            wanted = tuple("any" if size is None else size for size in shape)
            raise UserError(f"{path}: {name}: found shape {found.shape}, expected {wanted}")
        if found.dtype.kind not in "iuf":
            raise UserError(f"{path}: {name}: found {found.dtype}, expected numbers")


def check_ids(path: str, fixture: Arrays, name: str, most: int) -> None:
    """Raise UserError for an array that holds something else than whole numbers in 0..most."""
    values = fixture[name]
    is_whole = values.dtype.kind in "iu"
    bad = values[(values < 0) | (values > most)] if is_whole else [values.dtype]
    if len(bad):
        raise UserError(f"{path}: {name}: found {bad[0]}, expected whole numbers in 0..{most}")


def differing(ours: np.ndarray, expected: np.ndarray) -> float:
    """Number of elements that differ; inf where the shapes do."""
    return float(np.sum(ours != expected)) if ours.shape == expected.shape else float("inf")


def of_step(
    fixture: Arrays,
    params: Any,
    grads: Any,
    optimizer: optax.GradientTransformation,
    to_official: Callable[[Any], Arrays],
) -> Errors:
    """Errors of the gradients, and of the parameters after a step of the optimizer."""
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    stepped, ours = to_official(optax.apply_updates(params, updates)), to_official(grads)
    expected = {name: fixture[f"grad/{name}"] for name in ours}
    steps = {
        k: step_error(v, fixture[f"step1/{k}"], expected[k], k.endswith("in_proj_bias"))
        for k, v in stepped.items()
    }
    return {
        "gradients": largest({k: relative(v, expected[k]) for k, v in ours.items()}),
        "parameters after a step": largest(steps),
    }


def unpacked(values_P: np.ndarray, at_P: np.ndarray, shape: tuple[int, int], empty=0) -> np.ndarray:
    """(B, L, …): packed values at their places of a grid of that shape, `empty` elsewhere. at_P
    names places outside for slots without one."""
    grid = np.full((shape[0] * shape[1], *values_P.shape[1:]), empty, values_P.dtype)
    used = at_P < len(grid)
    grid[at_P[used]] = values_P[used]
    return grid.reshape(*shape, *values_P.shape[1:])
