"""The SASRec task: arrays on the device, and a training batch drawn from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.events import rows as rows_lib
from oa_jax.events.log import DOMAINS, InteractionLog, first_events
from oa_jax.events.split import Split
from oa_jax.nn import draws
from oa_jax.nn.draws import Purpose
from oa_jax.nn.task import FILLS, GRIDS, Lists, Task, take


@dataclasses.dataclass(frozen=True)
class SASRecTask(Task):
    """Arrays and draws of one data set. A training row is a user: the events before its last
    training event, each with the next one of the same stream as its target.

    streams: those that run. scored: of those, the ones whose tokens have targets. n_negatives: of
    each token, items of the target's domain that the user has not taken in training; 0 for none.
    """

    streams: tuple[str, ...] = ("x",)
    scored: tuple[str, ...] = ("x",)
    n_negatives: int = 1

    def __post_init__(self):
        n_train = self.split.n_train
        self.check({s: self._n_events(s, n_train).max() > 1 for s in self.scored}, self.n_negatives)

    def _n_events(self, stream, end_U):
        """(U,): how many of each user's first `end_U` events are of the stream."""
        chosen = self.log.position < end_U[self.log.user]
        if stream != "x":
            chosen &= self.log.domain == DOMAINS.index(stream)
        return np.bincount(self.log.user[chosen], minlength=self.log.n_users)

    @functools.cached_property
    def row_users(self) -> np.ndarray:
        """Users with a target in some stream: two training events of it."""
        counts = [self._n_events(stream, self.split.n_train) for stream in self.scored]
        return np.flatnonzero(np.max(counts, 0) > 1).astype(np.int32)

    @functools.cached_property
    def slot_counts(self) -> np.ndarray:
        """(N, U): tokens of each row in each of `streams`."""
        counts = [self._n_events(stream, self.split.n_train - 1) for stream in self.streams]
        return np.minimum(np.stack(counts)[:, self.row_users], self.length)

    def arrays_of(self, log: InteractionLog, split: Split, rows: np.ndarray):
        """seq, seq_D, time_D (U, L), see `events.rows.streams`; last (U,) the last training event;
        lists own_A, own_B."""
        place, users = split.n_train - 1, np.arange(log.n_users)
        row, event = first_events(log, users, place)
        arrays = rows_lib.streams(log, row, event, log.n_users, self.length, self.length)
        own = rows_lib.own_items(log, split.in_training(log))
        return arrays | {"last": log.item[log.offsets[users] + place]} | own

    def eval_arrays(self, split: str) -> dict[str, np.ndarray]:
        arrays, place, row, event = rows_lib.evaluation_rows(self.log, self.split, split)
        return arrays | rows_lib.streams(self.log, row, event, len(place), *[self.length] * 2)

    def batch(self, arrays, rows_B, seed, step, capacity: tuple[int, ...]) -> dict[str, jax.Array]:
        """Training batch of rows `rows_B` (out of range: an empty row).

        -> what `read` gives, with seq, seq_D, time_D (B, L); of each stream that scores pos_S
        (B, L), the next item or 0, and neg_S (P_S, K), joint ids both.
        """
        batch = self.read(arrays, rows_B, FILLS, capacity, self.streams)
        own = [Lists.of(arrays, f"own_{name}", rows_B) for name in DOMAINS]
        last_B, key = take(arrays, "last", rows_B), draws.key_of(seed, Purpose.NEGATIVES, step)
        for stream in self.scored:
            seq_BxL = batch[GRIDS[stream]]
            is_next = (stream == "x") | ((last_B > self.log.n_items[0]) == (stream == "B"))
            next_BxL = jnp.c_[seq_BxL[:, 1:], jnp.where(is_next, last_B, 0)]
            pos_BxL = batch[f"pos_{stream}"] = jnp.where(seq_BxL != 0, next_BxL, 0)
            if self.n_negatives:
                of_stream = jax.random.fold_in(key, self.streams.index(stream))
                at_P = batch[f"at_{stream}"]
                batch[f"neg_{stream}"] = self._negatives(of_stream, own, at_P, pos_BxL)
        return batch

    def _negatives(self, key, own, at_P, pos_BxL):
        """(P, K): the draw of a token depends on its place in the grid, not on its slot."""

        def one(at):
            row = jnp.minimum(at // self.length, len(pos_BxL) - 1)
            in_b = pos_BxL.ravel().at[at].get(mode="fill", fill_value=0) > self.log.n_items[0]
            place = jax.random.fold_in(key, at)
            return self.draw_negatives(place, own, row, in_b, self.n_negatives)

        return jax.vmap(one)(at_P)
