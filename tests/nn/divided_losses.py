"""For test_losses: all forms of the softmax on a table that is divided over four devices.

Prints, for each mesh and form, the largest difference of loss and gradients from one device's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from oa_jax.nn import losses, shards

jax.config.update("jax_num_cpu_devices", 4)
rng = np.random.default_rng(0)
table, h = (jnp.asarray(rng.normal(size=(n, 8)), jnp.float32) for n in (12, 16))
weight = jnp.asarray(rng.random(16), jnp.float32)
target, negatives = (jnp.asarray(rng.integers(1, 12, shape)) for shape in (16, (16, 6)))


def found(form, table):
    def loss(table, h):
        return losses.position_negatives(table, h, weight, target, negatives, 5, form)[0]

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(table, h))


expected = found("gather", table)
for shape in ((4, 1), (2, 2)):
    mesh = jax.make_mesh(shape, ("table", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.set_mesh(mesh):
        assert shards.is_divided(table)
        parts = jax.device_put(table, NamedSharding(mesh, PartitionSpec("table")))
        for form in ("gather", "products", "counts"):
            pairs = zip(found(form, parts), expected, strict=True)
            print(max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs))
