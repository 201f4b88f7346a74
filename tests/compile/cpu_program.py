"""Prints the HLO text of a small program on four CPU devices; v5e.hlo and h100.hlo are the same
program compiled ahead of time for v5e:2x2 and h100:4, without metadata and backend configurations.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def program(w_DxD, x_BxLxD):
    """Seven turns of two products and a sum over all devices."""

    def step(w_DxD, _):
        h_BxLxD = x_BxLxD @ w_DxD
        scores_BxLxL = jnp.einsum("bld,bkd->blk", h_BxLxD, h_BxLxD)
        loss = jnp.sum(scores_BxLxL, (0, 1, 2))
        return w_DxD * jnp.tanh(loss), loss

    return jax.lax.scan(step, w_DxD, None, length=7)


def compiled(devices):
    """`program` with its batch of 8 over four devices."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=devices)

    def array(shape, spec):
        return jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))

    return jax.jit(program).lower(array((128, 128), P()), array((8, 16, 128), P("data"))).compile()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    print(compiled(jax.devices()).as_text())
