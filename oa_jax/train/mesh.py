"""Devices as a mesh of two axes: `seed` holds whole seeds, `data` parts of a seed's batch."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oa_jax.errors import UserError

AXES = ("seed", "data")
EXPECTED = "sizes of the axes seed and data such as seed:2,data:2, or nothing"


def parse(text: str) -> tuple[int, int] | None:
    """Sizes (seed, data) of `seed:2,data:2`; an axis that is not named is 1. None of "".

    Raises ValueError for anything else.
    """
    if text == "":
        return None
    sizes = {}
    for part in text.split(","):
        match = re.fullmatch(r"(seed|data):([1-9]\d{0,5})", part)
        if not match or match[1] in sizes:
            raise ValueError(part)
        sizes[match[1]] = int(match[2])
    return sizes.get("seed", 1), sizes.get("data", 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the seeds of a program and their batches lie.

    sizes: of (seed, data), None: as many devices on `seed` as there are seeds for, the rest on
    `data`. Seeds that do not fill the axis are joined by padding slots, copies that nobody reads.
    """

    devices: tuple
    sizes: tuple[int, int] | None = None

    @classmethod
    def of(cls, text: str, devices=None) -> Layout:
        """The layout of `--config.mesh=text`. Raises UserError where the devices are too few, or
        where several processes would not all have a part."""
        devices, sizes = tuple(jax.devices() if devices is None else devices), parse(text)
        if sizes is None:
            return cls(devices)
        needed, found = math.prod(sizes), len(devices)
        several = len({device.process_index for device in devices}) > 1
        if needed > found or (several and needed < found):
            raise UserError(
                f"--config.mesh={text}: {needed} devices: found {found}: "
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

    def mesh(self, n_seeds: int) -> Mesh:
        """The mesh of that many seeds, and of their slots. All have the same devices in the same
        order, so that arrays can go from one to another inside a program."""
        devices = np.array(self.devices).reshape(self.seed_size(n_seeds), -1)
        return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)

    def by_seed(self, n_seeds: int) -> NamedSharding:
        """Where values with a leading axis of seeds lie; everywhere if they don't fill the axis."""
        fills = n_seeds % self.seed_size(n_seeds) == 0
        return NamedSharding(self.mesh(n_seeds), P("seed") if fills else P())

    def everywhere(self, n_seeds: int) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh(n_seeds), P())


def place(tree, sharding):
    """Values of the host or of devices, equal in all processes, where `sharding` says."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(one, tree)
