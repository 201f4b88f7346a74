"""The host loop: epochs on the device; metrics, checkpoints and compaction between them."""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from oa_jax.experiment import Experiment
from oa_jax.train import engine as engine_lib
from oa_jax.train.checkpoint import Checkpoints
from oa_jax.train.rows import Rows
from oa_jax.train.state import State
from oa_jax.train.workdir import Workdir


@dataclasses.dataclass
class Clock:
    """Seconds by kind, over all sessions of a run; compilation is its own kind."""

    engine: engine_lib.Engine
    seconds: dict[str, float]

    def timed(self, kind: str, fn, *args):
        begin, compiled = time.perf_counter(), self.engine.compile_seconds
        out = jax.block_until_ready(fn(*args))
        compiled = self.engine.compile_seconds - compiled
        spent = {kind: time.perf_counter() - begin - compiled, "compile": compiled}
        for name, value in spent.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        return out


def train(experiment: Experiment, workdir: Workdir, say) -> tuple[State, dict[str, float]]:
    """Train all seeds to their ends -> (states of all seeds, seconds by kind).

    Goes on from the newest checkpoint. `say` prints one line.
    """
    engine, seeds, config = experiment.engine, experiment.seeds, experiment.config["train"]
    rows, clock = Rows(experiment, workdir), Clock(engine, {})
    with Checkpoints(workdir.checkpoints, config["keep_checkpoints"]) as checkpoints:
        found = checkpoints.restore_newest(engine.abstract(seeds, experiment.hparams()))
        arrays = experiment.train_arrays()
        if found:
            epoch, states, clock.seconds = found
            workdir.keep_rows(epoch)
            say(f"going on after epoch {epoch}")
        else:
            epoch, states = 0, clock.timed("train", engine.create, seeds, experiment.hparams())
            workdir.keep_rows(-1)
            rows.add(0, states, clock.timed("evaluate", engine.assess, states, arrays))
        groups = Groups(states, config["compaction"])
        while groups.running.any():
            begin = time.perf_counter()
            capacity = clock.timed("train", engine.capacity, seeds, epoch)
            states, report = clock.timed("train", engine.epoch, groups.states, arrays, capacity)
            epoch += 1
            rows.add(epoch, states, report, groups.slots, groups.running)
            say(rows.line(epoch, time.perf_counter() - begin))
            groups.update(states)
            if epoch % config["checkpoint_every"] == 0 or not groups.running.any():
                clock.timed("save", checkpoints.save, epoch, groups.all(), clock.seconds)
    return groups.all(), clock.seconds


class Groups:
    """The states of all seeds: those in the compiled program, and those put aside.

    With compaction, seeds that stop leave the program: uneven stopping costs little, but every
    size of the program is compiled. Without, they stay in it and no longer change.
    """

    def __init__(self, states: State, compaction: bool):
        self.compaction = compaction
        self.slots = np.arange(states.seed.shape[0])  # of the seeds in the program
        self._aside: list[tuple[np.ndarray, State]] = []
        self.update(states)

    def update(self, states: State) -> None:
        """Take the new states of the seeds in the program; put aside those that stopped."""
        self.states = states
        self.running = ~np.asarray(states.done)
        if self.compaction and not self.running.all():
            done = ~self.running
            self._aside.append((self.slots[done], engine_lib.take_seeds(states, done)))
            self.states = engine_lib.take_seeds(states, self.running)
            self.slots, self.running = self.slots[self.running], self.running[self.running]

    def all(self) -> State:
        """All states in the order of the slots, in buffers of their own."""
        parts = [*self._aside, (self.slots, self.states)]
        order = np.argsort(np.concatenate([slots for slots, _ in parts]))
        return engine_lib.join_seeds([states for _, states in parts], order)
