"""How much room a batch's packed lists of tokens are given: the capacities of a program."""

from __future__ import annotations

import functools

import jax
import numpy as np

from oa_jax.nn import draws

SLOT_MULTIPLE = 128  # capacities are rounded up to this many slots


class Slots:
    """What a task with packed lists shares. It has `slot_counts`, the (N, U) tokens of each of its
    U training users in each of N lists, `n_users` and `batch_size`."""

    @property
    def n_steps(self) -> int:
        """Batches an epoch; the last may be partial."""
        return draws.steps_per_epoch(self.n_users, self.batch_size)

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

    def slots_needed(
        self, counts_NxU: jax.Array, seed: int | jax.Array, epoch: int | jax.Array
    ) -> jax.Array:
        """(N,): the most tokens of each list that any batch of this epoch holds."""
        rows = draws.epoch_rows(seed, epoch, self.n_users, self.batch_size)
        counts = counts_NxU.at[:, rows].get(mode="fill", fill_value=0)
        return counts.sum(-1).max(-1)
