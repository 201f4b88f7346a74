"""The least work of a function: matrix flops and bytes, counted on its jaxpr.

The count does not know what a compiler adds or saves. A scan counts as often as it turns, a loop of
unknown length once, a branch as its largest, and of branches by platform that of this device.
"""

import dataclasses
import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclasses.dataclass(frozen=True)
class Work:
    """flops: of matrix products, a multiplication and an addition counted as two.  bytes: of their
    operands and results, of gathered rows (read and written) and scattered ones (read, and their
    places read and written). Pointwise operations count as fused into those."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)

    def least_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline: the slower of the two, each at its full rate."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def count(fn, *args) -> Work:
    """Work of fn(*args); arguments and results are read and written once. They may be shapes."""
    closed = jax.make_jaxpr(fn)(*args)
    ends = sum(map(_size, (*closed.jaxpr.invars, *closed.jaxpr.outvars)))
    return _of(closed.jaxpr) + Work(0.0, ends)


def _of(jaxpr: Jaxpr) -> Work:
    return sum(map(_of_equation, jaxpr.eqns), Work())


def _of_equation(equation) -> Work:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        moved = sum(map(_size, (*equation.invars, *equation.outvars)))
        return Work(2.0 * equation.outvars[0].aval.size * depth, moved)
    if name == "gather":
        return Work(0.0, 2.0 * _size(equation.outvars[0]))
    if name in ("scatter", "scatter-add", "scatter_add"):
        return Work(0.0, 3.0 * _size(equation.invars[2]))
    params = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda value: not isinstance(value, (list, tuple))
    )
    jaxprs = [one for one in params if isinstance(one, (ClosedJaxpr, Jaxpr))]  # newer JAX: one type
    inner = [_of(getattr(one, "jaxpr", one)) for one in jaxprs]
    if name == "cond":
        platforms, here = equation.params.get("branches_platforms"), jax.default_backend()
        if platforms is not None:
            return next(w for p, w in zip(platforms, inner, strict=True) if p is None or here in p)
        return max(inner, key=lambda work: (work.flops, work.bytes))
    return sum(inner, Work()) * equation.params.get("length", 1)


def _size(variable) -> float:
    aval = variable.aval
    return float(aval.size * getattr(aval.dtype, "itemsize", 4)) if hasattr(aval, "shape") else 0.0
