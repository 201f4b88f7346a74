"""The ABXI task: the arrays that live on the device, and a training batch drawn from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.abxi import arrays as abxi_arrays
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.rows import own_items
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.task import Lists, Task, packed_places, take

STREAMS = ("seq_x", "seq_a", "seq_b", "gt")


@dataclasses.dataclass(frozen=True)
class ABXITask(Task):
    """Arrays and draws of one data set; its training rows are the users that train.

    negatives: "per_position" (official: every position draws its own) or "per_sequence" (the
    positions of a row share one draw). n_negatives: drawn from each domain.
    pool_b_from_last_a: quirk Q1, the pool of B starts at A's last item.
    """

    n_negatives: int
    negatives: str = "per_position"
    pool_b_from_last_a: bool = True

    def __post_init__(self):
        self.check(dict(zip(DOMAINS, self.slot_counts.any(1), strict=True)), self.n_negatives)

    @functools.cached_property
    def row_users(self) -> np.ndarray:
        """Users with a training part: not those that `data.users` leaves out, nor the test users
        that have rows of their own in a published set."""
        return np.flatnonzero(self.split.n_train)

    @functools.cached_property
    def slot_counts(self) -> np.ndarray:
        """(2, U): training targets of each row in A and in B."""
        return abxi_arrays.target_counts(self.log, self.split, self.length)[:, self.row_users]

    def arrays_of(self, log: InteractionLog, split: Split, rows: np.ndarray):
        """seq_x, seq_a, seq_b, gt (U, L); lists own_A, own_B, counted from each pool's begin."""
        own = own_items(log, split.in_training(log))
        # With Q1 the pool's first element is A's last item: B's own items move up by one.
        own["own_B"] = own["own_B"] + np.int32(self.pool_b_from_last_a)
        return abxi_arrays.training_arrays(log, split, self.length) | own

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        return abxi_arrays.evaluation_arrays(self.log, self.split, split, self.length)

    def batch(self, arrays, rows_B, seed, step, capacity: tuple[int, int]) -> dict[str, jax.Array]:
        """Training batch of users `rows_B` (out of range: an empty row).

        -> seq_x, seq_a, seq_b, gt (B, L); at_A, at_B flat target positions, as many slots as
        `capacity`; negatives (P_A + P_B, 2n) or shared_negatives (B, 2n); n_users ().
        """
        batch = {name: take(arrays, name, rows_B) for name in STREAMS}
        in_b = batch["gt"] > self.log.n_items[0]
        masks = (batch["gt"] > 0) & ~in_b, in_b
        for name, mask, size in zip(DOMAINS, masks, capacity, strict=True):
            batch[f"at_{name}"] = packed_places(mask, size)
        batch["n_users"] = jnp.sum(rows_B < self.n_users).astype(jnp.float32)
        own = [Lists.of(arrays, f"own_{name}", rows_B) for name in DOMAINS]
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
        pools = (("own_A", n_a, 1), ("own_B", n_b + first, n_a + 1 - first))  # size, begin

        def one(at):
            row = jnp.minimum(at // length, len(own[0].n) - 1)
            keys = jax.random.split(jax.random.fold_in(key, at))
            drawn = [
                mine.draw_outside(k, row, size, self.n_negatives, self.most[name]) + begin
                for k, mine, (name, size, begin) in zip(keys, own, pools, strict=True)
            ]
            return jnp.concatenate(drawn)

        return jax.vmap(one)(at_P)
