"""What tasks share: the rows of a batch, how they are read, and the room of its packed streams."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.rows import own_items
from oa_jax.events.split import Split
from oa_jax.nn import draws

SLOT_MULTIPLE = 32  # capacities are rounded up to this many slots
# Of all backbones but ABXI: {stream: its ids}, and the arrays of `events.rows.streams` with the
# value of their padding.
GRIDS = {"x": "seq", "A": "seq_A", "B": "seq_B"}
FILLS = dict.fromkeys(GRIDS.values(), 0) | {"time_A": -1, "time_B": -1}


def take(arrays, name: str, rows_B, fill=0):
    """Rows of an array; `fill` where the number is out of range."""
    return arrays[name].at[rows_B].get(mode="fill", fill_value=fill)


def packed_places(grid_BxL, size: int):
    """(size,) flat places of the entries that are not 0; the rest lie out of range."""
    flat = grid_BxL.ravel()
    return jnp.nonzero(flat, size=size, fill_value=flat.size)[0]


class Lists(NamedTuple):
    """Lists of a batch's rows, see `events.rows`: row b has first[b], …, first[b] + n[b] - 1."""

    values: jax.Array
    first: jax.Array
    n: jax.Array

    @classmethod
    def of(cls, arrays, name: str, rows_B) -> "Lists":
        """Of rows out of range the empty list."""
        parts = (take(arrays, f"{part}_{name}", rows_B) for part in ("first", "n"))
        return cls(arrays[name], *parts)

    def draw_outside(self, key, row, n_items: int, size: int, most: int):
        """`size` distinct integers of [0, n_items) that row number `row` does not list."""
        args = self.values, self.n[row], size, self.first[row], most
        return draws.distinct_outside(key, n_items, *args)


@dataclasses.dataclass(frozen=True)
class Task:
    """The base of the tasks. A task has training rows 0..n_users-1 and

    log, split: the events and what of them trains.
    length: of the streams.  batch_size: rows of a batch.
    slot_counts: (N, U) tokens of each row in each of the N streams that a batch packs.
    row_users: (U,) the user of `log` behind each row.
    list_sizes: {name: (U,)} entries of each row in the lists of the arrays, see `events.rows`.
    arrays_of(log, split, rows): arrays of training of some rows, (U, ...) and lists, of widths that
        do not depend on them; user i of the log is the user of row rows[i]. Whatever else belongs
        to a row, its number included, is a column.
    eval_arrays(split): on the host, a row for each user with a target in "val" or "test": at least
        user, target, domain, seen, and what the backbone's `encode` reads.
    batch(arrays, rows_N, seed, step, capacity): a batch out of the rows `rows_of_batch` (out of
        range: an empty row), drawn on the device, a function of (seed, step) alone. It reads
        the arrays by these numbers alone: the arrays of a batch's rows, and their places among
        them, make the batch that the arrays of all rows make.
    """

    log: InteractionLog
    split: Split
    length: int
    batch_size: int

    n_support = 0  # rows that a batch has beside the batch_size ones of an epoch's order

    @property
    def n_steps(self) -> int:
        """Batches an epoch; the last may be partial."""
        return -(-self.n_users // self.batch_size)

    @functools.cached_property
    def usual_slots(self) -> np.ndarray:
        """(N,): tokens of each list that a batch all but never exceeds.

        Mean and five standard deviations of the sum over a random batch, without replacement; at
        most the fullest users together. It follows from the data alone, so that neither the seeds
        nor the epoch choose the program.
        """
        counts, size = self.slot_counts, min(self.batch_size, self.n_users)
        left = (self.n_users - size) / max(self.n_users - 1, 1)
        usual = size * counts.mean(1) + 5 * counts.std(1) * np.sqrt(size * left)
        return np.minimum(usual, np.sort(counts, 1)[:, -size:].sum(1))

    def capacity(self, slots_needed: np.ndarray) -> tuple[int, ...]:
        """Slots of each list in a batch: the usual ones, or the need if it is more, rounded up."""
        slots = np.ceil(np.maximum(self.usual_slots, slots_needed) / SLOT_MULTIPLE)
        return tuple(int(n) * SLOT_MULTIPLE for n in slots)

    @property
    def n_users(self) -> int:
        """Training rows."""
        return len(self.row_users)

    def train_arrays(self) -> dict[str, np.ndarray]:
        """Host arrays of training of all rows."""
        return self.arrays_of_rows(np.arange(self.n_users))

    def arrays_of_rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Host arrays of training of some rows, one or more."""
        users = self.row_users[rows]
        return self.arrays_of(self.log.take(users), self.split.take(users), rows)

    @functools.cached_property
    def list_sizes(self) -> dict[str, np.ndarray]:
        """By default of the lists own_A and own_B, see `events.rows.own_items`."""
        own = own_items(self.log, self.split.in_training(self.log))
        return {f"own_{name}": own[f"n_own_{name}"][self.row_users] for name in DOMAINS}

    @functools.cached_property
    def most(self) -> dict[str, int]:
        """The most entries that a row has in each of the lists."""
        return {name: int(sizes.max()) for name, sizes in self.list_sizes.items()}

    def check(self, has_target: Mapping[str, bool], n_negatives: int, undrawn: int = 0) -> None:
        """Raise UserError for a stream without a training target, and where a user owns so many
        items of a domain that fewer than `n_negatives` are left as negatives.

        has_target: of x, A or B.  undrawn: items of a domain that are no negatives of anyone.
        """
        for stream, found in has_target.items():
            if not found:
                where = "" if stream == "x" else f" in domain {stream}"
                raise UserError(f"{self.log.name}: no training target{where}")
        for d, name in enumerate(DOMAINS):
            most, n_items = self.most[f"own_{name}"], self.log.n_items[d] - undrawn
            if (left := n_items - most) >= n_negatives:
                continue
            found = f"a user of {self.log.name} owns {most} of domain {name}'s {n_items} items"
            if left < 1:
                raise UserError(f"{found}: expected one that is left as a negative")
            raise UserError(f"train.n_negatives: {n_negatives}: expected at most {left}: {found}")

    def read(
        self,
        arrays: Mapping[str, jax.Array],
        rows_N: jax.Array,
        fills: Mapping[str, int],
        capacity: tuple[int, ...],
        streams: Iterable[str] = GRIDS,
    ) -> dict[str, jax.Array]:
        """What the batch of rows `rows_N` reads: its rows of arrays, {name: value of padding}; of
        each stream S at_S, the flat places of its tokens, as many slots as `capacity`; real (N,),
        rows that are not out of range, and n_users (), their number."""
        batch = {name: take(arrays, name, rows_N, fill) for name, fill in fills.items()}
        for stream, size in zip(streams, capacity, strict=True):
            batch[f"at_{stream}"] = packed_places(batch[GRIDS[stream]], size)
        batch["real"] = rows_N < self.n_users
        return batch | {"n_users": jnp.sum(batch["real"]).astype(jnp.float32)}

    def draw_negatives(self, key, own, row, domain, size: int):
        """(size,) joint ids of a domain, 0 or 1, that row number `row` does not own.

        own: `Lists` of the rows for A and B.
        """
        picks = [
            own[d].draw_outside(key, row, self.log.n_items[d], size, self.most[f"own_{name}"])
            for d, name in enumerate(DOMAINS)
        ]
        return 1 + jnp.where(domain == 0, picks[0], picks[1] + self.log.n_items[0])

    def list_room(self, name: str) -> int:
        """Entries that hold a list of any batch's rows: no row comes more than once on each side
        of the query and the support."""
        sizes = np.sort(self.list_sizes[name])[::-1]
        return int(sizes[: self.batch_size].sum() + sizes[: self.n_support].sum())

    def rows_of_batch(self, rows_B, seed, step):
        """(N,) rows that the batch of step `step` reads, those of the order first."""
        return rows_B

    def epoch_rows(self, seed, epoch):
        """(T, N): rows of every batch of an epoch; numbers out of range are empty rows."""
        rows_TxB = draws.epoch_rows(seed, epoch, self.n_users, self.batch_size)
        steps_T = epoch * self.n_steps + jnp.arange(self.n_steps)

        def of_batch(rows_and_step):
            return self.rows_of_batch(rows_and_step[0], seed, rows_and_step[1])

        return jax.lax.map(of_batch, (rows_TxB, steps_T))

    def slots_needed(self, counts_NxU, seed, epoch):
        """(N,): the most tokens of each list that any batch of this epoch holds."""
        counts = counts_NxU.at[:, self.epoch_rows(seed, epoch)].get(mode="fill", fill_value=0)
        return counts.sum(-1).max(-1)
