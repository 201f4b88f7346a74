"""The ABXI task: the arrays that live on the device, and a training batch drawn from them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.abxi import arrays as abxi_arrays
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.slots import Slots


@dataclasses.dataclass(frozen=True)
class Task(Slots):
    """Arrays and draws of one data set.

    negatives: "per_position" (official: every position draws its own) or "per_sequence" (the
    positions of a row share one draw). n_negatives: drawn from each domain.
    pool_b_from_last_a: quirk Q1, the pool of B starts at A's last item.
    """

    log: InteractionLog
    split: Split
    length: int
    batch_size: int
    n_negatives: int
    negatives: str = "per_position"
    pool_b_from_last_a: bool = True

    def __post_init__(self):
        counts = self.target_counts
        for domain, count in zip("AB", counts.sum(1), strict=True):
            if count == 0:
                raise UserError(f"{self.log.name}: no training target in domain {domain}")
        for d, (n_items, most) in enumerate(zip(self.log.n_items, self.own_widths, strict=True)):
            if n_items - most < self.n_negatives:
                raise UserError(
                    f"train.n_negatives: {self.n_negatives}: expected at most {n_items - most}, "
                    f"the items of domain {'AB'[d]} less a user's own"
                )

    @property
    def n_users(self) -> int:
        return self.log.n_users

    @functools.cached_property
    def own_widths(self) -> tuple[int, int]:
        """The most own items of A and of B that a user has."""
        return abxi_arrays.history_widths(self.log, self.split)

    @functools.cached_property
    def target_counts(self) -> np.ndarray:
        """(2, U): training targets of each user in A and in B."""
        return abxi_arrays.target_counts(self.log, self.split, self.length)

    @property
    def slot_counts(self) -> np.ndarray:
        return self.target_counts

    def train_arrays(self) -> dict[str, np.ndarray]:
        """Host arrays of training: seq_x, seq_a, seq_b, gt (U, L); own items of each user."""
        return self.arrays_of(self.log, self.split)

    def arrays_of(self, log: InteractionLog, split: Split) -> dict[str, np.ndarray]:
        """`train_arrays` of some users of the log, in the same widths."""
        arrays = abxi_arrays.training_arrays(log, split, self.length)
        history = abxi_arrays.user_history(log, split, self.own_widths)
        own_b, first = history["b"], int(self.pool_b_from_last_a)
        # With Q1 the pool's first element is A's last item: B's own items move up by one.
        own_b = np.where(own_b < abxi_arrays.NO_ITEM, own_b + first, own_b)
        return arrays | {
            "own_a": history["a"],
            "own_b": own_b.astype(np.int32),
            "n_own_a": history["n_a"].astype(np.int32),
            "n_own_b": history["n_b"].astype(np.int32),
        }

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Host arrays of "val" or "test": one row per user that has a target."""
        return abxi_arrays.evaluation_arrays(self.log, self.split, split, self.length)

    def batch(self, arrays, rows_B, seed, step, capacity: tuple[int, int]):
        """Training batch of users `rows_B` (out of range: an empty row).

        -> seq_x, seq_a, seq_b, gt (B, L); at_A, at_B flat target positions, as many slots as
        `capacity`; negatives (P_A + P_B, 2n) or shared_negatives (B, 2n); n_users ().
        """

        def take(name, fill=0):
            return arrays[name].at[rows_B].get(mode="fill", fill_value=fill)

        batch = {name: take(name) for name in ("seq_x", "seq_a", "seq_b", "gt")}
        flat = batch["gt"].ravel()
        in_a = (flat > 0) & (flat <= self.log.n_items[0])
        in_b = flat > self.log.n_items[0]
        for name, mask, size in zip(("at_A", "at_B"), (in_a, in_b), capacity, strict=True):
            batch[name] = jnp.nonzero(mask, size=size, fill_value=len(flat))[0]
        batch["n_users"] = jnp.sum(rows_B < self.n_users).astype(jnp.float32)
        own = {name: take(name) for name in ("n_own_a", "n_own_b")}
        own |= {name: take(name, abxi_arrays.NO_ITEM) for name in ("own_a", "own_b")}
        key = draws.key_of(seed, Purpose.NEGATIVES, step)
        if self.negatives == "per_sequence":
            batch["shared_negatives"] = self._draw(key, own, jnp.arange(len(rows_B)), 1)
        else:
            at_P = jnp.concatenate([batch["at_A"], batch["at_B"]])
            batch["negatives"] = self._draw(key, own, at_P, self.length)
        return batch

    def _draw(self, key, own, at_P, length):
        """(P, 2n) item ids: for each place, n of A and n of B outside its user's own items.

        The draw of a place depends on its position in the grid, not on its slot.
        """
        (n_a, n_b), first = self.log.n_items, int(self.pool_b_from_last_a)

        def one(at):
            row = jnp.minimum(at // length, len(own["n_own_a"]) - 1)
            key_a, key_b = jax.random.split(jax.random.fold_in(key, at))
            args_a = (own["own_a"][row], own["n_own_a"][row], self.n_negatives)
            args_b = (own["own_b"][row], own["n_own_b"][row], self.n_negatives)
            from_a = draws.distinct_outside(key_a, n_a, *args_a) + 1
            from_b = draws.distinct_outside(key_b, n_b + first, *args_b) + n_a + 1 - first
            return jnp.concatenate([from_a, from_b])

        return jax.vmap(one)(at_P)
