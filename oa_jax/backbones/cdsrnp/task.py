"""The CDSRNP task: arrays on the device; a query batch and a disjoint support set of each step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.cdsrnp import arrays as cdsrnp_arrays
from oa_jax.backbones.cdsrnp.arrays import Targets
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.rows import own_items
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.task import FILLS, Lists, Task


@dataclasses.dataclass(frozen=True)
class CDSRNPTask(Task):
    """Arrays and draws of one data set. A training row is a target of a user, who may have several.

    targets: see `cdsrnp_arrays.training_rows`.  support: rows of overlapped users drawn beside
    each batch.  exclude_query: no person of the batch is among them, so that a query's target is
    never known to the support set.
    """

    merged_length: int
    targets: str = "each_domain"
    support: int = 128
    exclude_query: bool = True

    def __post_init__(self):
        in_b = cdsrnp_arrays.target_of(self.log, self.rows) > self.log.n_items[0]
        self.check({"A": not in_b.all(), "B": in_b.any()}, 1)
        if self.support and not len(self.pool):
            raise UserError(
                f"{self.log.name}: no training user with a history in both domains: the support "
                "set needs some; --config.model.neural_process=False trains without"
            )

    @functools.cached_property
    def rows(self) -> Targets:
        """The training rows."""
        return cdsrnp_arrays.training_rows(self.log, self.split, self.targets)

    @property
    def row_users(self) -> np.ndarray:
        return self.rows.user

    @property
    def n_support(self) -> int:
        return min(self.support, len(self.pool))

    @functools.cached_property
    def _history_counts(self):
        return cdsrnp_arrays.history_counts(self.log, self.rows)

    @functools.cached_property
    def pool(self) -> np.ndarray:
        """(O,) rows that the support set is drawn from: those with a history in both domains."""
        return np.flatnonzero(self._history_counts.all(0)).astype(np.int32)

    @functools.cached_property
    def person(self) -> np.ndarray:
        """(U,) the person behind each row."""
        return cdsrnp_arrays.persons(self.log, self.split, self.rows)

    @functools.cached_property
    def slot_counts(self) -> np.ndarray:
        """(3, U): tokens of each row in the merged stream and in those of A and B."""
        merged = np.minimum(self._history_counts.sum(0), self.merged_length)
        return np.stack([merged, *np.minimum(self._history_counts, self.length)])

    @functools.cached_property
    def usual_slots(self) -> np.ndarray:
        """(3,): as of `Task`, with room for the support set."""
        usual = super().usual_slots
        if not self.n_support:
            return usual
        counts = self.slot_counts[:, self.pool]
        spread = 5 * counts.std(1) * np.sqrt(self.n_support)
        most = np.sort(counts, 1)[:, -self.n_support :].sum(1)
        return usual + np.minimum(self.n_support * counts.mean(1) + spread, most)

    def train_arrays(self) -> dict[str, np.ndarray]:
        """Host arrays of all rows, see `arrays_of`; those of a user share its own items."""
        return self._arrays(self.log, self.split, self.rows)

    def arrays_of(self, log: InteractionLog, split: Split, rows: np.ndarray):
        """Streams (U, L or M); target, domain (U,); lists own_A, own_B of the user's items."""
        users = np.arange(len(rows), dtype=np.int32)
        return self._arrays(log, split, Targets(users, self.rows.place[rows]))

    def _arrays(self, log, split, rows):
        target, own = cdsrnp_arrays.target_of(log, rows), own_items(log, split.in_training(log))
        arrays = cdsrnp_arrays.history(log, rows, self.length, self.merged_length)
        arrays |= {"target": target, "domain": (target > log.n_items[0]).astype(np.int32)}
        for name in (f"own_{d}" for d in DOMAINS):
            arrays[name] = own[name]
            arrays |= {k: own[k][rows.user] for k in (f"first_{name}", f"n_{name}")}
        return arrays

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        sizes = self.length, self.merged_length
        return cdsrnp_arrays.evaluation_arrays(self.log, self.split, split, *sizes)

    def rows_of_batch(self, rows_B, seed, step):
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

    def batch(self, arrays, rows_N, seed, step, capacity: tuple[int, ...]) -> dict[str, jax.Array]:
        """Training batch: N = B query rows (out of range: an empty row), then S of support.

        -> what `read` gives, with seq (N, M), seq_D, time_D (N, L), but n_users () are the real
        query rows; target, negative (N,) joint ids; domain (N,); query (N,) bool; epoch () of
        training so far.
        """
        batch = self.read(arrays, rows_N, FILLS | {"target": 0, "domain": 0}, capacity)
        batch["query"] = jnp.arange(len(rows_N)) < len(rows_N) - self.n_support
        own = [Lists.of(arrays, f"own_{d}", rows_N) for d in DOMAINS]
        key = draws.key_of(seed, Purpose.NEGATIVES, step)
        batch["negative"] = self._negatives(key, own, batch["domain"])
        batch["epoch"] = step / self.n_steps
        batch["n_users"] = jnp.sum(batch["real"] & batch["query"]).astype(jnp.float32)
        return batch

    def _negatives(self, key, own, domain_N):
        """(N,) an item of the target's domain that the row's user has not taken in training."""

        def one(key, row, domain):
            return self.draw_negatives(key, own, row, domain, 1)[0]

        keys_N = jax.random.split(key, len(domain_N))
        return jax.vmap(one)(keys_N, jnp.arange(len(domain_N)), domain_N)
