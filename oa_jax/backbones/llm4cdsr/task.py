"""The LLM4CDSR task: the arrays that live on the device, and a training batch drawn from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.llm4cdsr import arrays as llm4cdsr_arrays
from oa_jax.backbones.llm4cdsr.fields import Quirks
from oa_jax.events.log import DOMAINS, InteractionLog
from oa_jax.events.rows import own_items
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.task import FILLS, Lists, Task

# What of the training rows goes to the device, each with the value of its padding; the rest
# follows from it or serves the tests.
STREAMS = FILLS | {"pos_A": 0, "pos_B": 0, "pair_A": -1, "pair_B": -1}


@dataclasses.dataclass(frozen=True)
class LLM4CDSRTask(Task):
    """Arrays and draws of one data set."""

    quirks: Quirks = Quirks.of("official")  # without Q6, Q5 has nothing to decide

    def __post_init__(self):
        has_target = dict(zip(DOMAINS, self.slot_counts[1:].any(1), strict=True))
        self.check(has_target, 1, undrawn=int(self.quirks.q7_last_item_never_drawn))

    @functools.cached_property
    def row_users(self) -> np.ndarray:
        return llm4cdsr_arrays.training_users(self.log, self.split)

    @functools.cached_property
    def profiles(self) -> np.ndarray:
        """(U,) profile of each row: its user's; Q10: its user's number among those with 3 events or
        more, whether they train or not."""
        if not self.quirks.q10_profile_by_row:
            return self.row_users
        return (np.cumsum(np.diff(self.log.offsets) >= 3) - 1)[self.row_users]

    @functools.cached_property
    def slot_counts(self) -> np.ndarray:
        """(3, U): tokens of each row in streams x, A and B."""
        counts = llm4cdsr_arrays.token_counts(self.log, self.split, self.length)
        return counts[:, self.row_users]

    @functools.cached_property
    def list_sizes(self) -> dict[str, np.ndarray]:
        lists = self._lists(self.log, self.split)
        return {k[2:]: sizes[self.row_users] for k, sizes in lists.items() if k.startswith("n_")}

    def _lists(self, log, split):
        """What negatives avoid, the whole training part and its window; where L_reg draws."""
        window = llm4cdsr_arrays.in_window(log, split, self.length)
        drop_last = self.quirks.q7_last_item_never_drawn
        return (
            own_items(log, split.in_training(log), "own", drop_last)
            | own_items(log, window, "window", drop_last)
            | llm4cdsr_arrays.pair_pools(log, split)
        )

    def arrays_of(self, log: InteractionLog, split: Split, rows: np.ndarray):
        """STREAMS (U, L); profile (U,); lists own_D and window_D, ids of D; pool_D, joint."""
        built = llm4cdsr_arrays.training_arrays(log, split, self.length)
        arrays = {name: built[name] for name in STREAMS} | self._lists(log, split)
        return arrays | {"profile": self.profiles[rows].astype(np.int32)}

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        return llm4cdsr_arrays.evaluation_arrays(
            self.log, self.split, split, self.length, self.quirks.drop_last_of_other
        )

    def batch(self, arrays, rows_B, seed, step, capacity: tuple[int, ...]) -> dict[str, jax.Array]:
        """Training batch of rows `rows_B` (out of range: an empty row).

        -> what `read` gives, with seq, seq_D, pos_D, time_D, pair_D (B, L) and profile (B,); neg_D
        (P_D,) ids of the domain and neg_x_D (P_D,) joint ids, the negatives of the domain's stream
        and of stream x; reg_A, reg_B (B,) joint ids, 0 without both.
        """
        batch = self.read(arrays, rows_B, STREAMS | {"profile": 0}, capacity)
        lists = {name: Lists.of(arrays, name, rows_B) for name in self.list_sizes}
        keys = jax.random.split(draws.key_of(seed, Purpose.NEGATIVES, step), 3)
        for d in (0, 1):
            batch |= self._negatives(keys[d], lists, batch, d)
        return batch | self._pairs(keys[2], lists)

    def _negatives(self, key, lists, batch, domain):
        """neg_D, neg_x_D: the draw of a token depends on its place in the grid, not on its slot."""
        shape, n_a, flat_seq = batch["seq"].shape, self.log.n_items[0], batch["seq"].ravel()

        def draw(key, row, d, avoided):
            """One joint id of domain d."""
            name = f"{avoided}_{DOMAINS[d]}"
            size = self.log.n_items[d] - self.quirks.q7_last_item_never_drawn
            return lists[name].draw_outside(key, row, size, 1, self.most[name])[0] + 1 + n_a * d

        def one(at, pair):
            """Joint ids: of the domain's stream, and of stream x."""
            row = jnp.minimum(at // shape[1], shape[0] - 1)
            own_key, joint_key = jax.random.split(jax.random.fold_in(key, at))
            if not self.quirks.q6_two_negatives:
                both = draw(own_key, row, domain, "own")
                return both, both
            own = draw(own_key, row, domain, "window")
            if not self.quirks.q5_negative_of_input_domain:
                return own, draw(joint_key, row, domain, "own")
            source = flat_seq[row * shape[1] + pair]
            picks = [draw(joint_key, row, d, "own") for d in (0, 1)]
            return own, jnp.where(source > n_a, picks[1], picks[0])

        name = DOMAINS[domain]
        at_P = batch[f"at_{name}"]
        pair_P = batch[f"pair_{name}"].ravel().at[at_P].get(mode="fill", fill_value=0)
        own_P, joint_P = jax.vmap(one)(at_P, pair_P)
        return {f"neg_{name}": own_P - n_a * domain, f"neg_x_{name}": joint_P}

    def _pairs(self, key, lists):
        """reg_A, reg_B: an event of each domain, uniformly, for the users that have both."""
        pools, out = {d: lists[f"pool_{d}"] for d in DOMAINS}, {}
        both_B = (pools["A"].n > 0) & (pools["B"].n > 0)
        for one, (d, pool) in zip(jax.random.split(key), pools.items(), strict=True):
            bits_B = jax.random.bits(one, both_B.shape)
            place_B = (bits_B % jnp.maximum(pool.n, 1).astype(jnp.uint32)).astype(jnp.int32)
            out[f"reg_{d}"] = jnp.where(both_B, pool.values[pool.first + place_B], 0)
        return out
