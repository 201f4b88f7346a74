"""Inside a program whose mesh divides the work of a seed: which part of an array lies where.

Axis `data` divides batches. Axis `table` divides the rows of the item tables, and batches too, so
that no device repeats another's work. Nothing here changes a value but by rounding, and nothing
happens without these axes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

AXES = ("table", "data")


def axes() -> tuple[str, ...]:
    """Those of the two axes on which the compiler divides what a seed does."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else tuple(name for name in AXES if name in mesh.auto_axes)


def size(*names: str) -> int:
    """Devices along the axes `names`, those without any counted as one."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in names if name in axes())


def on_batch(tree: Any) -> Any:
    """`tree` with its arrays' first axis over both axes; arrays that these do not divide stay."""
    names = axes()

    def one(array):
        if not names or array.ndim == 0 or array.shape[0] % size(*names):
            return array
        return jax.lax.with_sharding_constraint(array, P(names))

    return jax.tree.map(one, tree)


def is_divided(table: jax.Array) -> bool:
    """Whether the rows of a table lie over `table`: of any that this axis divides they do."""
    return "table" in axes() and len(table) % size("table") == 0


@dataclasses.dataclass(frozen=True)
class HeldRows:
    """The rows of a table (V, D) that a device holds: all, or its part of axis `table`."""

    array: jax.Array
    divided: bool = False

    def get(self, ids: jax.Array) -> jax.Array:
        """(…, D): the rows `ids`, 0 for those that other devices hold."""
        if not self.divided:
            return self.array[ids]
        return self.array.at[self.places(ids)].get(mode="fill", fill_value=0)

    def products(self, h: jax.Array, ids_BxK: jax.Array) -> jax.Array:
        """(B, …, K): products of `h` (B, …, D) with the rows `ids_BxK` of each, 0 where others
        hold them.

        Of `h` (B, D) they are picked out of the products with all rows while that is the smaller
        array: B·V scores against B·K vectors of D.
        """
        if h.ndim > 2 or len(self.array) > ids_BxK.shape[1] * self.array.shape[1]:
            return jnp.einsum("b...d,bkd->b...k", h, self.get(ids_BxK))
        places, every = self.places(ids_BxK), h @ self.array.T
        return jnp.take_along_axis(every, places, axis=1, mode="fill", fill_value=0)

    def add(self, total: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
        """`total`, of the same rows, with `values` (…, D) added at those of `ids` held here."""
        if not self.divided:
            return total.at[ids].add(values)
        return total.at[self.places(ids)].add(values, mode="drop")

    def sum(self, values: Any) -> Any:
        """`values` added up over the devices that hold the parts of the table."""
        return jax.lax.psum(values, "table") if self.divided else values

    def largest(self, values: jax.Array) -> jax.Array:
        """The largest of `values` over those devices."""
        return jax.lax.pmax(values, "table") if self.divided else values

    def once(self, values: jax.Array) -> jax.Array:
        """`values` that those devices know alike, on one of them, 0 on the others."""
        if not self.divided:
            return values
        return jnp.where(jax.lax.axis_index("table") == 0, values, 0)

    def places(self, ids: jax.Array) -> jax.Array:
        """Where the rows `ids` stand in `array`; beyond it, those of other devices."""
        if not self.divided:
            return ids
        places = ids - jax.lax.axis_index("table") * len(self.array)
        return jnp.where(places < 0, len(self.array), places)  # a negative index would wrap


def over_batch(part: Callable, table: jax.Array, *batch: jax.Array) -> tuple[Any, Any]:
    """`part(HeldRows, *batch)` -> ((total, of_table), outs), by devices that hold a part of each.

    table: (V, D).  batch: arrays with the same first axis; a device sees its own part of `data`,
    whole along `table`.  total: scalars, which all devices along `table` know alike; of_table:
    arrays (V, D); both are added over the parts of the batch.  outs: with the batch's first axis,
    added over `table`.
    A loop over blocks of a batch must be written so: the compiler would bring every block to every
    device.
    """
    names, divided = axes(), is_divided(table)
    split = len(batch[0]) % size(*names) == 0
    apart = tuple(name for name in names if not (divided and name == "table"))
    if not names or not (divided or split):
        return part(HeldRows(table), *batch)

    def own(table, *batch):
        if divided and split:
            batch = jax.lax.all_gather(batch, "table", tiled=True)
        sums, outs = part(HeldRows(table, divided), *batch)
        if apart and split:
            sums = jax.lax.psum(sums, apart)
        if divided and split:
            outs = jax.tree.map(lambda a: jax.lax.psum_scatter(a, "table", tiled=True), outs)
        elif divided:
            outs = jax.lax.psum(outs, "table")
        return sums, outs

    of_batch, of_table = P(names) if split else P(), P("table") if divided else P()
    run = jax.shard_map(
        own,
        in_specs=(of_table, *(of_batch for _ in batch)),
        out_specs=((P(), of_table), of_batch),
        axis_names=set(names),
        check_vma=False,
    )
    return run(table, *batch)


def rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]`: (…, D). Each device looks up the rows that it holds."""
    if not is_divided(table):
        return table[ids]
    found = over_batch(lambda held, ids: (((), ()), held.get(ids)), table, ids.ravel())[1]
    return found.reshape(*ids.shape, -1)


def products(table: jax.Array, h: jax.Array, ids_BxK: jax.Array) -> jax.Array:
    """(B, …, K): products of each row of `h` (B, …, D) with the rows `ids_BxK` of the table."""
    if not is_divided(table):
        return HeldRows(table).products(h, ids_BxK)
    return over_batch(lambda held, *of: (((), ()), held.products(*of)), table, h, ids_BxK)[1]


def padded_rows(n_rows: int, n_parts: int) -> int:
    """Rows of a table of `n_rows` that can be divided: what is added is 0 and stays so."""
    return -(-n_rows // n_parts) * n_parts


def with_spare_rows(init: Callable) -> Callable:
    """The initializer of a table of shape (V, D): `init`, and the rows that are added."""

    def padded(key, shape):
        more = padded_rows(shape[0], size("table")) - shape[0]
        return jnp.pad(init(key, shape), [(0, more), (0, 0)])

    return padded


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The rows 0 … `last` of a table in blocks: `width` rows of every device, one device after the
    other, so that scoring a block, and adding up what is by part, stay on the devices."""

    last: int
    width: int

    @property
    def n_parts(self) -> int:
        """Devices that hold the table."""
        return size("table")

    @property
    def _rows(self) -> int:
        """Rows of a device."""
        return padded_rows(self.last + 1, self.n_parts) // self.n_parts

    def __len__(self):
        return -(-self._rows // self.width)

    def ids(self, number: int | jax.Array) -> jax.Array:
        """(K,): the rows of a block; numbers above `last` where there is none."""
        offset = number * self.width + jnp.arange(self.width)
        first = self._rows * jnp.arange(self.n_parts)
        ids = jnp.where(offset < self._rows, first[:, None] + offset, self.last + 1)
        return ids.ravel()

    def columns(self, number: int | jax.Array, ids: jax.Array) -> jax.Array:
        """The places of `ids` in a block; K for those in other blocks."""
        part, offset = ids // self._rows, ids % self._rows - number * self.width
        there = (offset >= 0) & (offset < self.width)
        return jnp.where(there, part * self.width + offset, self.n_parts * self.width)

    def by_part(self, values_BxK: jax.Array) -> jax.Array:
        """(B, parts, width)"""
        return values_BxK.reshape(len(values_BxK), self.n_parts, self.width)


def block_rows(table: jax.Array, ids_K: jax.Array) -> jax.Array:
    """(K, D): the rows `ids_K` of one of the `Blocks`."""
    if not is_divided(table):
        return table[jnp.minimum(ids_K, len(table) - 1)]
    run = jax.shard_map(
        lambda table, ids_K: HeldRows(table, True).get(ids_K),
        in_specs=(P("table"), P("table")),
        out_specs=P("table"),
        # With `data` left to the compiler, XLA of jaxlib 0.12 aborts in some programs.
        axis_names=set(axes()),
        check_vma=False,
    )
    return run(table, ids_K)


def scores(table: jax.Array, h_BxD: jax.Array, ids: jax.Array) -> jax.Array:
    """(B, K): products of each row of `h` with the rows `ids` (B, K) of its own, or with those of
    one of the `Blocks` (K,)."""
    if ids.ndim == 1:
        return h_BxD @ block_rows(table, ids).T
    return products(table, h_BxD, ids)
