"""The CDSRNP task: arrays on the device; a query batch and a disjoint support set of each step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.abxi.arrays import NO_ITEM
from oa_jax.backbones.cdsrnp import arrays as cdsrnp_arrays
from oa_jax.backbones.cdsrnp.arrays import STREAMS
from oa_jax.backbones.llm4cdsr.arrays import in_training, own_items
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.slots import Slots


@dataclasses.dataclass(frozen=True)
class CDSRNPTask(Slots):
    """Arrays and draws of one data set.

    targets: see `cdsrnp_arrays.training_rows`.  support: rows of overlapped users drawn beside
    each batch.  exclude_query: no person of the batch is among them, so that a query's target is
    never known to the support set.
    """

    log: InteractionLog
    split: Split
    length: int
    merged_length: int
    batch_size: int
    targets: str = "each_domain"
    support: int = 128
    exclude_query: bool = True

    def __post_init__(self):
        domain = self._rows["domain"]
        for d, name in enumerate(DOMAINS):
            if not (domain == d).any():
                raise UserError(f"{self.log.name}: no training target in domain {name}")
            most = int(self._own[f"n_own_{name}"].max())
            if most >= self.log.n_items[d]:
                raise UserError(
                    f"{self.log.name}: a user owns {most} of domain {name}'s "
                    f"{self.log.n_items[d]} items: expected one that is left as a negative"
                )
        if self.support and not len(self.pool):
            raise UserError(
                f"{self.log.name}: no training user with a history in both domains: the support "
                "set needs some; --config.model.neural_process=False trains without"
            )

    @functools.cached_property
    def rows(self) -> cdsrnp_arrays.Rows:
        """The training rows."""
        return cdsrnp_arrays.training_rows(self.log, self.split, self.targets)

    @property
    def n_users(self) -> int:
        """Training rows, which are the users of a batch; a user has up to two."""
        return len(self.rows)

    @property
    def n_support(self) -> int:
        return min(self.support, len(self.pool))

    @functools.cached_property
    def _rows(self):
        target = cdsrnp_arrays.target_of(self.log, self.rows)
        streams = cdsrnp_arrays.history(self.log, self.rows, self.length, self.merged_length)
        domain = (target > self.log.n_items[0]).astype(np.int32)
        return streams | {"target": target, "domain": domain}

    @functools.cached_property
    def pool(self) -> np.ndarray:
        """(O,) rows that the support set is drawn from: those of overlapped users."""
        return np.flatnonzero(cdsrnp_arrays.is_overlapped(self._rows)).astype(np.int32)

    @functools.cached_property
    def person(self) -> np.ndarray:
        """(R,) the person behind each row."""
        return cdsrnp_arrays.persons(self.log, self.split, self.rows)

    @functools.cached_property
    def _own(self):
        """The distinct training items of each user that has a row, and its number for each row."""
        users, own_row = np.unique(self.rows.user, return_inverse=True)
        own = own_items(self.log, in_training(self.log, self.split), users, drop_last=False)
        return own | {"own_row": own_row.astype(np.int32)}

    @functools.cached_property
    def slot_counts(self) -> np.ndarray:
        """(3, R): tokens of each row in the merged stream and in those of A and B."""
        return np.stack([(self._rows[name] != 0).sum(1) for name in ("seq", "seq_A", "seq_B")])

    @functools.cached_property
    def usual_slots(self) -> np.ndarray:
        """(3,): as of `Slots`, with room for the support set."""
        usual = super().usual_slots
        if not self.n_support:
            return usual
        counts = self.slot_counts[:, self.pool]
        spread = 5 * counts.std(1) * np.sqrt(self.n_support)
        most = np.sort(counts, 1)[:, -self.n_support :].sum(1)
        return usual + np.minimum(self.n_support * counts.mean(1) + spread, most)

    def slots_needed(self, counts_NxU, seed, epoch):
        """(N,): the most tokens of each list that any batch of this epoch holds."""
        rows_TxB = draws.epoch_rows(seed, epoch, self.n_users, self.batch_size)

        def one(step_and_rows):
            rows = self.with_support(step_and_rows[1], seed, step_and_rows[0])
            return counts_NxU.at[:, rows].get(mode="fill", fill_value=0).sum(-1)

        steps_T = epoch * self.n_steps + jnp.arange(self.n_steps)
        return jax.lax.map(one, (steps_T, rows_TxB)).max(0)

    def train_arrays(self) -> dict[str, np.ndarray]:
        """Host arrays of training: streams, targets, own items."""
        return self._rows | self._own

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Host arrays of "val" or "test": one row per user that has a target."""
        sizes = self.length, self.merged_length
        return cdsrnp_arrays.evaluation_arrays(self.log, self.split, split, *sizes)

    def with_support(self, rows_B, seed, step):
        """(B + S,): the batch's rows, then a uniform draw without replacement of the pool's rows.

        Out-of-range numbers are empty rows: where the pool has fewer that are admitted.
        """
        if not self.n_support:
            return rows_B
        pool, person = jnp.asarray(self.pool), jnp.asarray(self.person)
        key = draws.key_of(seed, Purpose.SUPPORT, step)
        order_O = (jax.random.bits(key, pool.shape) >> 1).astype(jnp.int32)
        if self.exclude_query:
            nobody = len(self.person)
            asked_B = person.at[rows_B].get(mode="fill", fill_value=nobody)
            asked = jnp.zeros(nobody, bool).at[asked_B].set(True, mode="drop")
            order_O = jnp.where(asked[person[pool]], -1, order_O)
        value_S, place_S = jax.lax.top_k(order_O, self.n_support)
        return jnp.concatenate([rows_B, jnp.where(value_S >= 0, pool[place_S], self.n_users)])

    def batch(self, arrays, rows_B, seed, step, capacity: tuple[int, int, int]):
        """Training batch: N = B query rows (out of range: an empty row), then S of support.

        -> streams seq (N, M), seq_D, time_D (N, L); at_x, at_A, at_B flat places of the tokens, as
        many slots as `capacity`; target, negative (N,) joint ids; domain (N,); real, query (N,)
        bool; epoch () of training so far; n_users () real query rows.
        """
        rows_N = self.with_support(rows_B, seed, step)

        def take(name, fill=0, rows=rows_N):
            return arrays[name].at[rows].get(mode="fill", fill_value=fill)

        batch = {name: take(name, -1 if name[:4] == "time" else 0) for name in STREAMS}
        for name, size in zip(("x", *DOMAINS), capacity, strict=True):
            flat = batch["seq" if name == "x" else f"seq_{name}"].ravel()
            batch[f"at_{name}"] = jnp.nonzero(flat, size=size, fill_value=flat.size)[0]
        batch |= {"target": take("target"), "domain": take("domain")}
        batch |= {"real": rows_N < self.n_users, "query": jnp.arange(len(rows_N)) < len(rows_B)}
        owner_N = take("own_row")
        own = {k: take(k, NO_ITEM, owner_N) for k in ("own_A", "own_B")}
        own |= {k: take(k, 0, owner_N) for k in ("n_own_A", "n_own_B")}
        key = draws.key_of(seed, Purpose.NEGATIVES, step)
        batch["negative"] = self._negatives(key, own, batch["domain"])
        batch["epoch"] = step / self.n_steps
        batch["n_users"] = jnp.sum(batch["real"] & batch["query"]).astype(jnp.float32)
        return batch

    def _negatives(self, key, own, domain_N):
        """(N,) an item of the target's domain that the row's user has not taken in training."""
        keys_N = jax.random.split(key, len(domain_N))
        picks = []
        for d, name in enumerate(DOMAINS):
            n_items = self.log.n_items[d]

            def one(key, taken, n_taken, n_items=n_items):
                return draws.distinct_outside(key, n_items, taken, n_taken, 1)[0]

            local_N = jax.vmap(one)(keys_N, own[f"own_{name}"], own[f"n_own_{name}"])
            picks.append(local_N + 1 + d * self.log.n_items[0])
        return jnp.where(domain_N == 0, *picks)
