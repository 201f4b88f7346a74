"""The engine for data larger than the device: rows come in chunks, training and evaluation."""

import jax
import jax.numpy as jnp

from oa_jax import processes
from oa_jax.engine import step as step_lib
from oa_jax.engine.feed import Feed, places
from oa_jax.engine.program import Engine
from oa_jax.engine.state import State

EVALUATION_BLOCKS = 16  # blocks of users that are on the device at a time


class StreamingEngine(Engine):
    """As Engine, with the same batches; of `arrays` it needs no "train", and all but the frozen
    tables stay on the host.

    An epoch is a program per chunk of steps, then evaluation in slices, then the selection.
    """

    def __init__(self, settings: step_lib.Settings, axis: str, feed: Feed, mesh="", devices=None):
        super().__init__(settings, axis, mesh, devices)
        self.feed = feed

    def epoch(self, states: State, arrays, capacity):
        # Rows of every batch of the coming epoch.
        rows = self.over_seeds("rows", self._rows, (states.seed, states.epoch), ())
        rows_SxTxN, losses = processes.fetch(rows), []
        steps, tables = self.feed.chunk_steps, arrays.get("tables")
        for k, fed in enumerate(self.feed.chunks(rows_SxTxN)):
            seeded = (states, rows_SxTxN[:, k * steps : (k + 1) * steps], fed)
            states, of_chunk = self.over_seeds(*self._chunk(capacity), seeded, tables, donate=True)
            # Without this the host would run ahead and fill the device with chunks to come.
            jax.block_until_ready(losses[-1:])
            losses.append(of_chunk)
        seeded = states, _joined(losses), self.assess(states, arrays)
        val = {name: arrays["val"][name] for name in ("real", "domain")}
        return self.over_seeds("select", self._select, seeded, val, donate=True)

    def _epoch(self, states, arrays, capacity):
        """What to compile for an epoch: its chunk."""
        seeded = (states, *self.feed.shapes(states.seed.shape[0]))
        return *self._chunk(capacity), seeded, arrays.get("tables"), True

    def keep(self, arrays, n_seeds: int):
        """The arrays stay on the host, but the tables."""
        tables = {name: arrays[name] for name in ("tables",) if name in arrays}
        return arrays | self._everywhere(tables, n_seeds)

    def on_device(self, arrays, n_seeds: int):
        """Shapes of two chunks, the one in work and the next; the tables."""
        return [self.feed.shapes(n_seeds)] * 2, arrays.get("tables")

    def assess(self, states: State, arrays):
        params, watched, tables = states.params, self.settings.watched, arrays.get("tables")
        ranks, _ = self.final(params, arrays["val"], (watched,), tables, probes=False)
        _, sums = super().final(params, arrays["probe"], (), tables)
        return {"ranks": ranks[watched], "gca": sums}

    def final(self, params, rows, rankings, tables=None, probes=True):
        whole = super().final
        parts = [whole(params, part, rankings, tables, probes) for part in self._cut(rows)]
        ranks, sums = zip(*parts, strict=True)
        return _joined(ranks), jax.tree.map(lambda *a: sum(a), *sums)

    def compiled(self, program, *args):
        """For an epoch its chunk, for `final` a slice of the rows, which are arrays."""
        if program == "final":
            params, rows, *how = args
            args = params, self._cut(rows)[0], *how
        return super().compiled(program, *args)

    def _rows(self, seed, epoch, _):
        return self.settings.task.epoch_rows(seed, epoch)

    def _chunk(self, capacity):
        def one(state, rows_CxN, fed, tables):
            settings = self.settings.on(tables)

            def step(state, rows_and_arrays):
                rows_N, arrays = rows_and_arrays
                at_N = places(rows_N, settings.task.n_users)
                return step_lib.train_step(settings, capacity, state, at_N, arrays)

            trained, losses = jax.lax.scan(step, state, (rows_CxN, fed))
            return step_lib.unless_done(state, trained), losses

        return ("chunk", capacity), one

    def _select(self, state, losses, assessed, val):
        selected, report = step_lib.select(self.settings, state, losses, assessed, val)
        return step_lib.unless_done(state, selected), report

    def _cut(self, rows):
        """Rows in slices of whole blocks, the last one shorter."""
        n_blocks = len(rows["real"]) // self.settings.block_users

        def part(values, begin):
            size = len(values) // n_blocks
            return values[begin * size : (begin + EVALUATION_BLOCKS) * size]

        return [
            {name: part(values, begin) for name, values in rows.items()}
            for begin in range(0, n_blocks, EVALUATION_BLOCKS)
        ]


def _joined(parts):
    return jax.tree.map(lambda *a: jnp.concatenate(a, 1), *parts)
