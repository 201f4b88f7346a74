"""Inside a program whose mesh divides the batch of a seed: which part of an array lies where.

Nothing here changes a value but by rounding, and nothing happens without an axis `data`.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P


def data_size() -> int:
    """Devices among which the compiler divides a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape["data"] if not mesh.empty and "data" in mesh.auto_axes else 1


def on_data(tree):
    """`tree` with its arrays' first axis over `data`; arrays that it does not divide stay."""
    size = data_size()

    def one(array):
        if size == 1 or array.ndim == 0 or array.shape[0] % size:
            return array
        return jax.lax.with_sharding_constraint(array, P("data"))

    return jax.tree.map(one, tree)


def over_data(part, shared, rows):
    """`part(shared, *rows)` -> (sums, rows), each device's own rows apart: sums are added up.

    A loop over blocks of rows must be written so: the compiler would bring every block to every
    device. rows: arrays with the same first axis.
    """
    if data_size() == 1 or rows[0].shape[0] % data_size():
        return part(shared, *rows)

    def own(shared, *rows):
        sums, out = part(shared, *rows)
        return jax.lax.psum(sums, "data"), out

    specs = (P(), *(P("data") for _ in rows))
    run = jax.shard_map(
        own, in_specs=specs, out_specs=(P(), P("data")), axis_names={"data"}, check_vma=False
    )
    return run(shared, *rows)
