"""Devices as a mesh of three axes: `seed` holds whole seeds, `data` parts of a seed's batch,
`table` parts of its embedding tables, and of what `data` leaves of its batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oa_jax.configuration import MESH_AXES, MESH_EXPECTED, mesh_sizes
from oa_jax.errors import UserError
from oa_jax.nn import shards

# Names of the tables, in parameters, moments and frozen inputs, whose rows `table` divides.
TABLES = ("items", "items_out", "local_A", "local_B", "users")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the seeds of a program and their batches lie.

    sizes: of (seed, data, table), None: as many devices on `seed` as there are seeds for, the rest
    on `data`. Seeds that do not fill `seed` are joined by padding slots, copies that nobody reads.
    """

    devices: tuple
    sizes: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, text: str, devices=None, flag="--config.mesh") -> "Layout":
        """The layout of `flag=text`. Raises UserError where the text is none, the devices are too
        few, or several processes would not all have a part."""
        devices = tuple(jax.devices() if devices is None else devices)
        try:
            sizes = mesh_sizes(text)
        except ValueError:
            raise UserError(f"{flag}={text}: expected {MESH_EXPECTED}") from None
        if sizes is None:
            return cls(devices)
        needed, found = math.prod(sizes), len(devices)
        several = len({device.process_index for device in devices}) > 1
        if needed > found or (several and needed < found):
            raise UserError(
                f"{flag}={text}: {needed} devices: found {found}: "
                f"expected {'all of them' if several else 'no more than those'}"
            )
        return cls(devices[:needed], sizes)

    def seed_size(self, n_seeds: int) -> int:
        """Devices on the axis `seed`: the fewest that divide all and give each seed its own."""
        if self.sizes:
            return self.sizes[0]
        n = len(self.devices)
        return min((d for d in range(1, n + 1) if n % d == 0 and d >= n_seeds), default=n)

    def slots(self, n_seeds: int) -> int:
        """Seeds with padding, which fill the axis `seed`."""
        size = self.seed_size(n_seeds)
        return -(-n_seeds // size) * size

    def even(self, capacity: tuple[int, ...], n_seeds: int) -> tuple[int, ...]:
        """Slots of a batch, with as many more as let the devices of a seed have equal parts."""
        parts = len(self.devices) // self.seed_size(n_seeds)
        return tuple(-(-size // parts) * parts for size in capacity)

    def mesh(self, n_seeds: int) -> Mesh:
        """The mesh of that many seeds, and of their slots. All have the same devices in the same
        order, so that arrays can go from one to another inside a program."""
        devices = np.array(self.devices).reshape(self.seed_size(n_seeds), -1, self.table_size)
        return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    @property
    def table_size(self) -> int:
        """Devices on the axis `table`."""
        return self.sizes[2] if self.sizes else 1

    def by_seed(self, tree, n_seeds: int):
        """Where values with a leading axis of seeds lie, a sharding for each: over `seed`, or
        everywhere if they don't fill it; rows of tables over `table`."""
        fills = n_seeds % self.seed_size(n_seeds) == 0
        return self._shardings(tree, n_seeds, "seed" if fills else None)

    def shared(self, tree, n_seeds: int):
        """Where values that all seeds share lie: everywhere, rows of tables over `table`."""
        return self._shardings(tree, n_seeds)

    def _shardings(self, tree, n_seeds, *leading):
        whole, rows = (
            NamedSharding(self.mesh(n_seeds), P(*leading, *names)) for names in ((), ("table",))
        )

        def one(path, _):
            return rows if self.table_size > 1 and is_table(path) else whole

        return jax.tree_util.tree_map_with_path(one, tree)

    def with_rows(self, tree, axis: int):
        """`tree` whose tables have rows along `axis` that the axis `table` divides: rows of zeros
        are added, which no id names and no step changes."""
        parts = self.table_size
        if parts == 1:
            return tree

        def one(path, table):
            if not is_table(path) or table.shape[axis] % parts == 0:
                return table
            more = shards.padded_rows(table.shape[axis], parts) - table.shape[axis]
            if isinstance(table, jax.ShapeDtypeStruct):
                shape = list(table.shape)
                shape[axis] += more
                return jax.ShapeDtypeStruct(tuple(shape), table.dtype)
            return jnp.pad(table, [(0, more * (i == axis)) for i in range(table.ndim)])

        return jax.tree_util.tree_map_with_path(one, tree)


def is_table(path) -> bool:
    """Whether the leaf at this path of a tree is an embedding table."""
    last = path[-1] if path else None
    return getattr(last, "key", getattr(last, "name", None)) in TABLES


def bytes_on_device(tree) -> int:
    """Bytes that arrays, or their shapes, take on each device that they lie on."""

    def one(leaf):
        where = getattr(leaf, "sharding", None)
        shape = where.shard_shape(leaf.shape) if where else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def place(tree, shardings):
    """Values of the host or of devices, equal in all processes, where `shardings` say."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(array, sharding):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(one, tree, shardings)
