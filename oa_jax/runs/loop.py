"""The host loop: epochs on the device; metrics, checkpoints and compaction between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from oa_jax import processes
from oa_jax.engine import program as engine_lib
from oa_jax.engine.state import State
from oa_jax.experiment import Experiment
from oa_jax.runs import initial
from oa_jax.runs.checkpoint import Checkpoints
from oa_jax.runs.metrics_file import Rows
from oa_jax.runs.workdir import Workdir

PADDING = -1  # in the place of a seed's slot


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


def train(
    experiment: Experiment,
    workdir: Workdir,
    say: Callable[[str], None],
    notice: processes.Notice | None = None,
) -> tuple[State, dict[str, float]]:
    """Train all seeds to their ends -> (states of all seeds, seconds by kind).

    Goes on from the newest checkpoint, which may hold fewer seeds, or seeds that had reached a
    smaller max_epochs. `say` prints one line. Raises Interrupted, with everything saved, after
    the epoch in which `notice` came.
    """
    engine, seeds, config = experiment.engine, experiment.seeds, experiment.config.train
    rows, clock = Rows(experiment, workdir), Clock(engine, {})
    notice = notice or processes.Notice()  # outside of its context it never comes
    with Checkpoints(workdir.checkpoints, config.keep_checkpoints, say) as checkpoints:
        states, step, fresh = _begin(experiment, workdir, checkpoints, clock, say)
        arrays = engine.keep(experiment.train_arrays(), len(seeds))
        if len(fresh):
            begun = engine_lib.take_seeds(states, fresh)
            rows.add(0, begun, clock.timed("evaluate", engine.assess, begun, arrays), fresh)
        groups = Groups(states, config.compaction, engine.layout.seed_size(len(seeds)))
        while groups.running.any() or groups.next_cohort():
            begin, epoch = time.perf_counter(), groups.epoch
            capacity = clock.timed("train", engine.capacity, seeds, epoch)
            states, report = clock.timed("train", engine.epoch, groups.states, arrays, capacity)
            epoch, step = epoch + 1, step + 1
            rows.add(epoch, states, report, groups.slots, groups.running)
            say(rows.line(epoch, time.perf_counter() - begin))
            groups.update(states)
            leaving = notice.holds()
            if leaving or epoch % config.checkpoint_every == 0 or not groups.running.any():
                clock.timed("save", checkpoints.save, step, groups.all(), clock.seconds)
            if leaving:
                raise notice.error(f"{workdir.path} is saved after epoch {epoch}")
    return groups.all(), clock.seconds


def _begin(experiment, workdir, checkpoints, clock, say) -> tuple[State, int, np.ndarray]:
    """States of all seeds to go on from, the step that they were saved in, and the slots of those
    that begin now."""
    engine, seeds, hparams = experiment.engine, experiment.seeds, experiment.hparams()
    slots, n_saved = np.arange(len(seeds)), checkpoints.n_seeds() or len(seeds)
    some = jax.tree.map(lambda a: a[:n_saved], hparams)
    found = checkpoints.restore_newest(engine.abstract(seeds[:n_saved], some))
    if not found:
        workdir.keep_rows({})
        states = clock.timed("train", engine.create, seeds, hparams)
        return initial.begin(experiment, workdir, states, say), 0, slots
    step, states, clock.seconds = found
    epochs = processes.fetch(states.epoch)
    workdir.keep_rows(dict(zip(seeds.tolist(), epochs.tolist(), strict=False)))
    say(f"going on after epoch {int(epochs.max())}")
    # The configuration may allow more epochs than it did.
    states = states.replace(done=engine.settings.schedule.is_over(states))
    if n_saved < len(seeds):
        more = jax.tree.map(lambda a: a[n_saved:], hparams)
        fresh = clock.timed("train", engine.create, seeds[n_saved:], more)
        fresh = initial.begin(experiment, workdir, fresh, say)
        states = engine_lib.join_seeds([states, fresh], slots)
    return states, step, slots[n_saved:]


class Groups:
    """The states of all seeds: those in the compiled program, and those put aside.

    With compaction, seeds that stop leave the program: uneven stopping costs little, but every
    size of the program is compiled. Without, they stay in it and no longer change.

    Seeds in a program stand at the same epoch. Where they do not, as seeds that were added later
    begin from the first, they form cohorts, which are trained one after the other.

    multiple: the program's seeds are a multiple of it. Those that are missing are padding slots,
    copies of another seed that have stopped, and of no number.
    """

    def __init__(self, states: State, compaction: bool, multiple: int = 1):
        self.compaction, self.multiple = compaction, multiple
        done, epoch = processes.fetch((states.done, states.epoch))
        waits = ~done & (epoch > epoch.min(initial=epoch.max(), where=~done))
        groups = [~waits, *(waits & (epoch == e) for e in np.unique(epoch[waits]))]
        slots = np.arange(len(done))
        first, *self._aside = [
            (slots[of], states if of.all() else engine_lib.take_seeds(states, of)) for of in groups
        ]
        self._fill(*first)
        self.update(self.states)

    @property
    def epoch(self) -> int:
        """Epochs that the running seeds of the program have trained."""
        return int(processes.fetch(self.states.epoch)[self.running][0])

    def next_cohort(self) -> bool:
        """Take the next seeds that wait into the program; False if none do."""
        waiting = self._waiting()
        if not waiting:
            return False
        self._put_aside(self.slots, self.states, self.slots != PADDING)
        index = waiting[0]
        self._fill(*self._aside.pop(index))
        self.update(self.states)
        return True

    def _waiting(self) -> list[int]:
        """Numbers of the groups aside with seeds that have not ended."""
        return [i for i, (_, s) in enumerate(self._aside) if not processes.fetch(s.done).all()]

    def _put_aside(self, slots, states, chosen):
        self._aside.append((slots[chosen], engine_lib.take_seeds(states, chosen)))

    def update(self, states: State) -> None:
        """Take the new states of the seeds in the program; put aside those that stopped."""
        self.states = states
        self.running = ~processes.fetch(states.done)
        n_running = int(self.running.sum())
        if self.compaction and 0 < self._slots_for(n_running) < len(self.slots):
            done = ~self.running & (self.slots != PADDING)
            if done.any():
                self._put_aside(self.slots, states, done)
            self._fill(self.slots[self.running], engine_lib.take_seeds(states, self.running))
            self.running = self.slots != PADDING

    def _slots_for(self, n_seeds):
        return -(-n_seeds // self.multiple) * self.multiple

    def _fill(self, slots, states):
        """Take the seeds `slots` into the program, with padding."""
        missing = self._slots_for(len(slots)) - len(slots)
        self.slots = np.concatenate([slots, np.full(missing, PADDING)])
        self.states = states
        if missing:
            states = engine_lib.pad_seeds(states, len(self.slots))
            self.states = states.replace(done=states.done | (self.slots == PADDING))

    def all(self) -> State:
        """All states in the order of the slots, in buffers of their own."""
        parts = [*self._aside, (self.slots, self.states)]
        slots = np.concatenate([slots for slots, _ in parts])
        order = np.argsort(slots)[np.sum(slots == PADDING) :]
        return engine_lib.join_seeds([states for _, states in parts], order)
