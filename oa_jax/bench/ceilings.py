"""What the device can do at most, measured: a large matrix product, and a copy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from oa_jax.bench.clock import Spread, seconds_of

# Of a CPU, of an accelerator: width of the square matrices, bytes of the copied array, and how
# often either is done in one program, so that starting it does not count.
WIDTH = {"cpu": 1536, "other": 8192}
COPIED = {"cpu": 2**29, "other": 2**30}
TIMES = {"cpu": 2, "other": 20}
MATMULS = {"matmul": jnp.float32, "matmul bfloat16": jnp.bfloat16}


def cases() -> dict[str, Callable[[], float]]:
    """One case a ceiling, for `interleaved`."""
    width, times = _of(WIDTH), _of(TIMES)
    out = {}
    for name, kind in MATMULS.items():
        # Powers of this matrix are itself: nothing overflows.
        matrix = jnp.full((width, width), 1.0 / width, kind)
        out[name] = _case(lambda i, x: x @ x, matrix, times)
    rows = jnp.ones((_of(COPIED) // 4,), jnp.float32)
    out["copy"] = _case(lambda i, x: x + 1.0, rows, times)
    return out


def _case(step, start, times):
    program = jax.jit(lambda x: jax.lax.fori_loop(0, times, step, x)).lower(start).compile()
    jax.block_until_ready(program(start))
    return functools.partial(seconds_of, program, start)


def rates(measured: dict[str, Spread]) -> dict[str, float]:
    """Flops a second of each matrix product, bytes a second of a copy (read and written)."""
    times = _of(TIMES)
    out = {name: 2.0 * _of(WIDTH) ** 3 * times / measured[name].median for name in MATMULS}
    return out | {"copy": 2.0 * _of(COPIED) * times / measured["copy"].median}


def _of(sizes):
    return sizes["cpu" if jax.default_backend() == "cpu" else "other"]
