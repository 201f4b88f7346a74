"""The engine for data larger than the device: rows come in chunks, training and evaluation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax import processes
from oa_jax.engine import step as step_lib
from oa_jax.engine.feed import Feed, places
from oa_jax.engine.program import Engine
from oa_jax.engine.state import State
from oa_jax.nn.draws import epoch_rows

EVALUATION_BLOCKS = 16  # blocks of users that are on the device at a time


class StreamingEngine(Engine):
    """As Engine, with the same batches; of `arrays` it needs no "train", and all stay on the host.

    An epoch is a program per chunk of steps, then evaluation in slices, then the selection.
    """

    def __init__(self, settings: step_lib.Settings, axis: str, feed: Feed, mesh="", devices=None):
        super().__init__(settings, axis, mesh, devices)
        self.feed = feed

    def epoch(self, states: State, arrays, capacity):
        """One epoch of every seed -> (states, reports). The old states are given up."""
        rows_SxNxB, losses = self._rows(states), []
        steps = self.feed.chunk_steps
        for k, fed in enumerate(self.feed.chunks(rows_SxNxB)):
            seeded = (states, rows_SxNxB[:, k * steps : (k + 1) * steps], fed)
            states, of_chunk = self._over_seeds(*self._chunk(capacity), seeded, (), donate=True)
            # Without this the host would run ahead and fill the device with chunks to come.
            jax.block_until_ready(losses[-1:])
            losses.append(of_chunk)
        losses = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *losses)
        assessed, select = self.assess(states, arrays), self._select
        val = {name: arrays["val"][name] for name in ("real", "domain")}
        return self._over_seeds("select", select, (states, losses, assessed), val, donate=True)

    def _epoch(self, states, arrays, capacity):
        """What to compile for an epoch: its chunk."""
        return *self._chunk(capacity), (states, *self._fed(states.seed.shape[0])), (), True

    def keep(self, arrays, n_seeds: int):
        """The arrays stay on the host."""
        return arrays

    def on_device(self, arrays, n_seeds: int):
        """Shapes of two chunks, the one in work and the next."""
        return [self._fed(n_seeds)] * 2

    def _fed(self, n_seeds):
        """Shapes of a chunk: row numbers, and the rows."""
        task = self.settings.task
        shape = (n_seeds, min(self.feed.chunk_steps, task.n_steps), task.batch_size)

        def many(row):
            return jax.ShapeDtypeStruct((*shape, *row.shape), row.dtype)

        return jax.ShapeDtypeStruct(shape, jnp.int32), jax.tree.map(many, self.feed.row)

    def assess(self, states: State, arrays):
        """The report of `epoch` without training."""
        probe, watched = (
            functools.partial(step_lib.probe_sums, self.settings),
            self.settings.watched,
        )
        return {
            "ranks": self._ranks(states.params, arrays["val"], (watched,))[watched],
            "gca": self._over_seeds("probe", probe, (states.params,), arrays["probe"]),
        }

    def final(self, params, rows, rankings, tables=None):
        """{ranking: Ranks (S, R)} and GCA sums of `params` (leaves with S) over `rows`."""
        whole = super().final
        parts = [whole(params, part, rankings, tables) for part in self._cut(rows)]
        ranks, sums = zip(*parts, strict=True)
        return _joined(ranks), jax.tree.map(lambda *a: sum(a), *sums)

    def _final(self, params, rows, rankings, tables=None):
        """What to compile for a slice of the rows, which are arrays."""
        return super()._final(params, self._cut(rows)[0], rankings, tables)

    def _rows(self, states) -> np.ndarray:
        """(S, N, B): users of every batch of the coming epoch."""
        task = self.settings.task

        def one(seed, epoch, _):
            return epoch_rows(seed, epoch, task.n_users, task.batch_size)

        rows = self._over_seeds("rows", one, (states.seed, states.epoch), ())
        return processes.fetch(rows)

    def _chunk(self, capacity):
        task = self.settings.task

        def one(state, rows_CxB, fed, _):
            def step(state, rows_and_arrays):
                rows_B, arrays = rows_and_arrays
                at_B = places(rows_B, task.n_users)
                return step_lib.train_step(self.settings, capacity, state, at_B, arrays)

            trained, losses = jax.lax.scan(step, state, (rows_CxB, fed))
            return step_lib.unless_done(state, trained), losses

        return ("chunk", capacity), one

    def _select(self, state, losses, assessed, val):
        selected, report = step_lib.select(self.settings, state, losses, assessed, val)
        return step_lib.unless_done(state, selected), report

    def _ranks(self, params, rows, rankings):
        def one(params, rows):
            return step_lib.all_ranks(self.settings, params, rows, rankings)

        name = ("ranks", rankings)
        return _joined([self._over_seeds(name, one, (params,), s) for s in self._cut(rows)])

    def _cut(self, rows):
        """Rows in slices of whole blocks, the last one shorter."""
        size = EVALUATION_BLOCKS * self.settings.block_users
        n_rows = len(rows["real"])
        return [
            {name: values[begin : begin + size] for name, values in rows.items()}
            for begin in range(0, n_rows, size)
        ]


def _joined(parts):
    return jax.tree.map(lambda *a: jnp.concatenate(a, 1), *parts)
