"""The LLM4CDSR task: the arrays that live on the device, and a training batch drawn from them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.backbones.abxi.arrays import NO_ITEM
from oa_jax.backbones.llm4cdsr import arrays as llm4cdsr_arrays
from oa_jax.backbones.llm4cdsr.arrays import DOMAINS
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.slots import Slots

# What of the training rows goes to the device; the rest follows from it or serves the tests.
ROWS = ("seq", *(f"{part}_{d}" for d in DOMAINS for part in ("seq", "pos", "time", "pair")))


@dataclasses.dataclass(frozen=True)
class LLM4CDSRTask(Slots):
    """Arrays and draws of one data set. Quirks of oa_jax/backbones/README.md, True is official.

    q5: stream x's negative is of the input's domain, not the target's.  q6: it is another item
    than that of the domain's stream (without: one item, q5 has nothing to decide).  q7: the last
    item of a domain is never drawn.  q10: profiles are looked up by training row, not by user.
    drop_last_of_other: see `llm4cdsr_arrays.evaluation_arrays`.
    """

    log: InteractionLog
    split: Split
    length: int
    batch_size: int
    q5_negative_of_input_domain: bool = True
    q6_two_negatives: bool = True
    q7_last_item_never_drawn: bool = True
    q10_profile_by_row: bool = True
    drop_last_of_other: bool = True

    def __post_init__(self):
        rows = self._training_rows
        for d, name in enumerate(DOMAINS):
            if not rows[f"seq_{name}"].any():
                raise UserError(f"{self.log.name}: no training target in domain {name}")
            most, n_items = int(self._own[f"n_own_{name}"].max()), self._pool_size(d)
            if most >= n_items:
                raise UserError(
                    f"{self.log.name}: a user owns {most} of domain {name}'s {n_items} items: "
                    "expected one that is left as a negative"
                )

    def _pool_size(self, domain: int) -> int:
        return self.log.n_items[domain] - self.q7_last_item_never_drawn

    @functools.cached_property
    def users(self) -> np.ndarray:
        """(U,) user of each training row."""
        return llm4cdsr_arrays.training_users(self.log, self.split)

    @property
    def n_users(self) -> int:
        return len(self.users)

    @functools.cached_property
    def _training_rows(self):
        return llm4cdsr_arrays.training_arrays(self.log, self.split, self.length)

    @functools.cached_property
    def _own(self):
        """What negatives avoid: the whole training part, and its window."""
        parts = {"": llm4cdsr_arrays.in_training(self.log, self.split)}
        parts["window_"] = llm4cdsr_arrays.in_window(self.log, self.split, self.length)
        return {
            prefix + name: values
            for prefix, chosen in parts.items()
            for name, values in llm4cdsr_arrays.own_items(
                self.log, chosen, self.users, self.q7_last_item_never_drawn
            ).items()
        }

    @functools.cached_property
    def slot_counts(self) -> np.ndarray:
        """(3, U): tokens of each user in streams x, A and B."""
        rows = self._training_rows
        return np.stack([(rows[name] != 0).sum(1) for name in ("seq", "seq_A", "seq_B")])

    def train_arrays(self) -> dict[str, np.ndarray]:
        """Host arrays of training: streams, own items, pools of L_reg, profile of each row."""
        arrays = {name: self._training_rows[name] for name in ROWS} | self._own
        arrays |= llm4cdsr_arrays.pair_pools(self.log, self.split, self.users)
        row = np.arange(self.n_users, dtype=np.int32)
        return arrays | {"profile": row if self.q10_profile_by_row else self.users}

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Host arrays of "val" or "test": one row per user that has a target."""
        return llm4cdsr_arrays.evaluation_arrays(
            self.log, self.split, split, self.length, self.drop_last_of_other
        )

    def batch(self, arrays, rows_B, seed, step, capacity: tuple[int, int, int]):
        """Training batch of rows `rows_B` (out of range: an empty row).

        -> seq, seq_D, pos_D, time_D, pair_D (B, L); at_x, at_A, at_B flat places of the tokens, as
        many slots as `capacity`; neg_D (P_D,) ids of the domain and neg_x_D (P_D,) joint ids, the
        negatives of the domain's stream and of stream x; reg_A, reg_B (B,) joint ids, 0 without
        both; profile (B,); real (B,); n_users ().
        """

        def take(name, fill=0):
            return arrays[name].at[rows_B].get(mode="fill", fill_value=fill)

        batch = {name: take(name, -1 if name[:4] in ("time", "pair") else 0) for name in ROWS}
        for name, size in zip(("x", *DOMAINS), capacity, strict=True):
            flat = batch["seq" if name == "x" else f"seq_{name}"].ravel()
            batch[f"at_{name}"] = jnp.nonzero(flat, size=size, fill_value=flat.size)[0]
        batch |= {"profile": take("profile"), "real": rows_B < self.n_users}
        batch["n_users"] = jnp.sum(batch["real"]).astype(jnp.float32)
        own = {k: take(k, NO_ITEM if "own" in k and "n_own" not in k else 0) for k in self._own}
        key = draws.key_of(seed, Purpose.NEGATIVES, step)
        keys = jax.random.split(key, 3)
        for domain, one in zip(DOMAINS, keys[:2], strict=True):
            batch |= self._negatives(one, own, batch, domain)
        return batch | self._pairs(keys[2], arrays, take)

    def _negatives(self, key, own, batch, domain):
        """neg_D, neg_x_D: the draw of a token depends on its place in the grid, not on its slot."""
        shape, n_a = batch["seq"].shape, self.log.n_items[0]
        offset, flat_seq = n_a * (domain == "B"), batch["seq"].ravel()

        def draw(key, row, which, prefix):
            """One id from 1 of domain number `which`, which may be traced."""
            picks = [
                draws.distinct_outside(
                    key, self._pool_size(d), own[f"{prefix}own_{name}"][row],
                    own[f"{prefix}n_own_{name}"][row], 1,
                )[0] + 1
                for d, name in enumerate(DOMAINS)
                if not isinstance(which, int) or which == d
            ]  # fmt: skip
            return picks[0] if len(picks) == 1 else jnp.where(which == 0, picks[0], picks[1] + n_a)

        def one(at, pair):
            row = jnp.minimum(at // shape[1], shape[0] - 1)
            local_key, joint_key = jax.random.split(jax.random.fold_in(key, at))
            d = DOMAINS.index(domain)
            if not self.q6_two_negatives:
                local = draw(local_key, row, d, "")
                return local, local + offset
            local = draw(local_key, row, d, "window_")
            if not self.q5_negative_of_input_domain:
                return local, draw(joint_key, row, d, "") + offset
            of_b = (flat_seq[row * shape[1] + pair] > n_a).astype(jnp.int32)
            return local, draw(joint_key, row, of_b, "")

        at_P = batch[f"at_{domain}"]
        pair_P = batch[f"pair_{domain}"].ravel().at[at_P].get(mode="fill", fill_value=0)
        local_P, joint_P = jax.vmap(one)(at_P, pair_P)
        return {f"neg_{domain}": local_P, f"neg_x_{domain}": joint_P}

    def _pairs(self, key, arrays, take):
        """reg_A, reg_B: an event of each domain, uniformly, for the users that have both."""
        sizes = {d: take(f"n_pool_{d}") for d in DOMAINS}
        both_B = (sizes["A"] > 0) & (sizes["B"] > 0)
        out = {}
        for one, d in zip(jax.random.split(key), DOMAINS, strict=True):
            bits_B = jax.random.bits(one, both_B.shape)
            place_B = (bits_B % jnp.maximum(sizes[d], 1).astype(jnp.uint32)).astype(jnp.int32)
            item_B = arrays[f"pool_{d}"][take(f"first_{d}") + place_B]
            out[f"reg_{d}"] = jnp.where(both_B, item_B, 0)
        return out
