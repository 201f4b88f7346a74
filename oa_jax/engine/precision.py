"""The type in which matrix products are taken, whatever the model: `train.compute_dtype`."""

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def products_in(dtype: str, fn):
    """`fn`, whose float32 matrix products take operands rounded to `dtype`, summed in float32.

    Everything else stays as it is: parameters, their gradients, norms, softmax, optimizer. Applied
    to a function and its gradient together, as the gradient's products are rounded as well.
    Products inside a loop (the blocks of the sampled softmax: sums over single item vectors, bound
    by memory) keep their type.
    """
    if dtype == "float32":
        return fn

    def rounded(*args):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args), jnp.dtype(dtype))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return rounded


def _run(jaxpr: Jaxpr, consts, args, dtype):
    """The values of a jaxpr, its products in `dtype`."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        given, inner = [read(v) for v in equation.invars], equation.params.get("jaxpr")
        primitive = equation.primitive
        if primitive.name == "dot_general":
            out = [_product(*given, equation, dtype)]
        elif primitive.name in ("jit", "pjit") and isinstance(inner, ClosedJaxpr):
            out = _run(inner.jaxpr, inner.consts, given, dtype)
        else:  # as it is
            with equation.ctx.manager:
                out = primitive.bind(*given, **primitive.get_bind_params(equation.params))
            out = out if primitive.multiple_results else [out]
        values.update(zip(equation.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _product(left, right, equation, dtype):
    if left.dtype != jnp.float32 or right.dtype != jnp.float32:
        return equation.primitive.bind(left, right, **equation.params)
    dimensions = equation.params["dimension_numbers"]
    operands = (left.astype(dtype), right.astype(dtype))
    return jax.lax.dot_general(*operands, dimensions, preferred_element_type=jnp.float32)
