"""Measurements in rounds, and the device's ceilings: a large matrix product, and a copy.

Every round measures each case once, so that what disturbs one at a time disturbs all of them, and
cases are compared within rounds.
"""

import functools
import time
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp

# Of a CPU, of an accelerator: width of the square matrices, bytes of the copied array, and how
# often either is done in one program, so that starting it does not count.
WIDTH = {"cpu": 1536, "other": 8192}
COPIED = {"cpu": 2**29, "other": 2**30}
TIMES = {"cpu": 2, "other": 20}
MATMULS = {"matmul": jnp.float32, "matmul bfloat16": jnp.bfloat16}


def seconds_of(fn: Callable, *args) -> float:
    """Wall seconds until the result of `fn` is there."""
    begin = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - begin


def interleaved(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """{case: seconds by round}, as a case returns them, without what it must prepare."""
    seconds = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(case())
    return seconds


def ratios(seconds: list[float], other: list[float]) -> list[float]:
    """One case over another, round by round: a machine that gets slower does not show in them."""
    return [mine / theirs for mine, theirs in zip(seconds, other, strict=True)]


def ceilings() -> dict[str, Callable[[], float]]:
    """One case a ceiling, for `interleaved`."""
    width, times = _here(WIDTH), _here(TIMES)

    def case(step, *args):
        def repeated(x, *others):
            return jax.lax.fori_loop(0, times, lambda i, x: step(x, *others), x)

        program = jax.jit(repeated).lower(*args).compile()
        jax.block_until_ready(program(*args))
        return functools.partial(seconds_of, program, *args)

    def product(x, w):  # as `train.compute_dtype` takes it
        return jax.lax.dot(x.astype(w.dtype), w, preferred_element_type=jnp.float32)

    # Random numbers, as constant ones take a GPU less power and time. With this deviation their
    # products keep theirs, nearly.
    start = jax.random.normal(jax.random.key(0), (width, width)) / width**0.5
    out = {name: case(product, start, start.astype(kind)) for name, kind in MATMULS.items()}
    return out | {"copy": case(lambda x: x + 1.0, jnp.ones(_here(COPIED) // 4, jnp.float32))}


def rates(measured: dict[str, list[float]]) -> dict[str, float]:
    """Flops a second of each matrix product, bytes a second of a copy (read and written)."""
    work = dict.fromkeys(MATMULS, _here(WIDTH) ** 3) | {"copy": _here(COPIED)}
    return {k: 2.0 * size * _here(TIMES) / median(measured[k]) for k, size in work.items()}


def _here(sizes):
    return sizes["cpu" if jax.default_backend() == "cpu" else "other"]
