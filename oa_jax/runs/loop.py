"""The host loop: seeds in the slots of a compiled program, an epoch after the other; metrics and
checkpoints between them.

A slot whose seed has ended is given to the next one that waits, of the same run or of another
that the same program can train (see `runs.sweep`).
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np

from oa_jax import processes
from oa_jax.engine import program as engine_lib
from oa_jax.engine.state import State
from oa_jax.experiment import Experiment
from oa_jax.runs import initial
from oa_jax.runs.checkpoint import COUNTERS
from oa_jax.runs.training import Clock, Say, Training
from oa_jax.runs.workdir import Workdir

GRACE_S = 10.0  # which a program that was told to leave waits for the end of an epoch

Seat = tuple[Training, int]  # a run, and the place of one of its seeds


@dataclasses.dataclass
class Use:
    """How well the slots were used, summed over epochs."""

    epochs: int = 0
    slots: int = 0
    busy: int = 0  # slots with a seed that trained
    seconds: float = 0.0  # of epochs on the device
    host: float = 0.0  # in which the device waits: between epochs, and an upper bound within
    other: float = 0.0  # of saving, and of what is done for seeds that begin or runs that end


class Slots:
    """The seeds in a compiled program.

    experiment: whose program it is. size: slots, rounded up to fill the devices. queue: runs that
    the program can train, in order; asked for the next one when a slot is free. With
    `train.compaction`, where seeds run side by side, the program shrinks by halves once nobody
    waits and the rest fits; where they run in turn a free slot costs nothing.
    """

    def __init__(self, experiment: Experiment, size: int, queue: Iterable[Training]):
        self.engine = engine = experiment.engine
        self.size = engine.layout.slots(size)
        self.arrays = engine.keep(experiment.train_arrays(), self.size)
        self.compaction = experiment.config.train.compaction and engine.axis == "vmap"
        self.use = Use()
        self._queue = ((training, i) for training in queue for i in training.waiting())
        self._seats: list[Seat | None] = []
        self._states: State | None = None

    def run(
        self,
        after: Callable[[Training, float], None],
        ended: Callable[[Training], None] = lambda training: None,
        notice: processes.Notice | None = None,
    ) -> None:
        """Train until nobody waits.

        after: is called with every run in the program and the seconds of an epoch, once its rows
        are written; ended: with a run whose seeds have all ended. Raises Interrupted, with
        everything saved, after the epoch in which `notice` came, or in it (see `_wait`).
        """
        notice = notice or processes.Notice()  # outside of its context it never comes
        late: Callable[[], None] | None = None
        ready = time.perf_counter()
        while self._fill():
            capacity = self._capacity()
            begin, compiled = time.perf_counter(), self.engine.compile_seconds
            self.use.host += begin - ready
            self._states, report = self.engine.epoch(self._states, self.arrays, capacity)
            if late:
                began = time.perf_counter()
                late()  # the host's part of the epoch before, while the device works
                if self._states.done.is_ready():  # and waits, at most for so long
                    self.use.host += time.perf_counter() - began
            self._wait(notice)
            counters = processes.fetch(_counters(self._states))
            ready, compiled = time.perf_counter(), self.engine.compile_seconds - compiled
            spent = {"train": ready - begin - compiled, "compile": compiled}
            groups = self._by_run()
            late = functools.partial(self._write, groups, counters, report, spent, after)
            self._leave(groups, counters, spent)
            leaving = notice.holds()
            due = [run for run in groups if leaving or run.is_due(spent["train"])]
            # Several processes fetch together, which must not meet an epoch under way.
            if due or any(run.done.all() for run in groups) or processes.several():
                late()
                late = None
            for run in due:
                seats, states = self._by_run().get(run, []), self._states
                inside = {place: engine_lib.take_seeds(states, [slot]) for slot, place in seats}
                self._aside(run.save, inside)
            if leaving:
                raise self._interrupted(groups, notice)
            for run in groups:
                if run.done.all():
                    self._aside(ended, run)
        self.use.host += time.perf_counter() - ready

    def _wait(self, notice):
        """Wait for the device. Raises Interrupted in mid-epoch, `GRACE_S` after `notice`: the
        machine may be gone before its end. Not if an earlier epoch is unsaved and would be lost,
        and not with several processes, which could not agree meanwhile."""
        groups, begin, told = self._by_run(), time.monotonic(), None
        if processes.several() or any(run.saved_step != run.step for run in groups):
            return
        while not self._states.done.is_ready():
            now = time.monotonic()
            if notice.holds():
                told = told or now
                if now - told >= GRACE_S:
                    raise self._interrupted(groups, notice)
            time.sleep(min(0.1, 0.01 * (now - begin)))

    @staticmethod
    def _interrupted(groups, notice):
        first, *more = (str(run.workdir.path) for run in groups)
        what = f"{first} and {len(more)} more are" if more else f"{first} is"
        epoch = max(run.epochs.max() for run in groups)
        return notice.error(f"{what} saved after epoch {epoch}")

    def _aside(self, fn, *args):
        """`fn(*args)`, whose time is not the host's part of an epoch."""
        begin, compiled = time.perf_counter(), self.engine.compile_seconds
        out = fn(*args)
        spent = time.perf_counter() - begin
        self.use.other += spent - (self.engine.compile_seconds - compiled)
        self.use.host -= spent
        return out

    def _capacity(self):
        taken = [seat for seat in self._seats if seat]
        seeds = [run.experiment.seeds[place] for run, place in taken]
        epochs = [run.epochs[place] for run, place in taken]
        return self._aside(self.engine.capacity, seeds, epochs, len(self._seats))

    def _by_run(self) -> dict[Training, list[tuple[int, int]]]:
        """(slot, place) of the seeds of each run, in the order of places."""
        groups: dict[Training, list[tuple[int, int]]] = {}
        for slot, seat in enumerate(self._seats):
            if seat:
                groups.setdefault(seat[0], []).append((slot, seat[1]))
        return {run: sorted(of, key=lambda pair: pair[1]) for run, of in groups.items()}

    def _write(self, groups, counters, report, spent, after):
        report = counters | processes.fetch(report)
        for run, of in groups.items():
            run.rows.add([place for _, place in of], report, [slot for slot, _ in of])
            after(run, spent["train"])

    def _leave(self, groups, counters, spent):
        """Count the epoch, and take the seeds that have ended out of their slots."""
        busy = sum(map(len, groups.values()))
        self.use.epochs += 1
        self.use.slots += len(self._seats)
        self.use.busy += busy
        self.use.seconds += spent["train"]
        for run, of in groups.items():
            run.clock.add(spent, len(of) / busy)
            run.step += 1
            for slot, place in of:
                run.epochs[place] = counters["epoch"][slot]
                if counters["done"][slot] or run.stop:
                    run.done[place] = True
                    run.outside[place] = self._aside(engine_lib.take_seeds, self._states, [slot])
                    self._seats[slot] = None
        free = np.array([seat is None for seat in self._seats])
        if (free & ~counters["done"]).any():  # stopped from outside
            self._states = self._states.replace(done=self._states.done | free)

    def _fill(self) -> bool:
        """Give free slots to seeds that wait; False if there is nothing left to train."""
        staying = [slot for slot, seat in enumerate(self._seats) if seat]
        free = self.size - len(staying)
        entering = self._aside(list, itertools.islice(self._queue, free))  # opens their files
        if not staying and not entering:
            return False
        states = self._states_of(entering, together=not staying)
        size = self._size_for(len(staying) + len(entering), others=len(entering) == free)
        if staying and size == len(self._seats):
            for seat, state in zip(entering, states, strict=True):
                slot = self._seats.index(None)
                self._seats[slot] = seat
                self._states = engine_lib.put_seeds(self._states, np.array([slot]), state)
        else:
            parts = [engine_lib.take_seeds(self._states, staying)] if staying else []
            parts += states
            joined = parts[0] if len(parts) == 1 else engine_lib.join_seeds(parts)
            seats = [self._seats[slot] for slot in staying] + entering
            self._seats = seats + [None] * (size - len(seats))
            padded = engine_lib.pad_seeds(joined, size)
            self._states = padded.replace(done=padded.done | (np.arange(size) >= len(seats)))
        return True

    def _size_for(self, n_seeds, others):
        """Slots of a program for that many seeds. others: more may be waiting."""
        if others or not self.compaction:
            return self.size
        size = len(self._seats) or self.size
        while n_seeds <= (half := self.engine.layout.slots(-(-size // 2))) < size:
            size = half
        return size

    def _states_of(self, seats, together) -> list[State]:
        """States of seeds that come in, each with an axis of 1. Those that begin get the row of
        their epoch 0: `together` by one program, otherwise one by one, also by one program. Where
        all begin together theirs are the whole."""
        fresh = [seat for seat in seats if seat[1] not in seat[0].outside]
        if together and fresh == seats:
            return [self._aside(self._begin, fresh)]
        groups, begun = [fresh] if together and fresh else [[seat] for seat in fresh], {}
        for group in groups:
            states = self._aside(self._begin, group)
            begun |= {seat: engine_lib.take_seeds(states, [i]) for i, seat in enumerate(group)}
        return [begun[seat] if seat in begun else seat[0].outside.pop(seat[1]) for seat in seats]

    def _begin(self, seats) -> State:
        clock = Clock(self.engine)
        values = [jax.tree.map(lambda of, i=i: of[i], run.hparams) for run, i in seats]
        hparams = jax.tree.map(lambda *of: np.stack(of), *values)
        seeds = np.array([run.experiment.seeds[place] for run, place in seats])
        states = clock.timed("train", self.engine.create, seeds, hparams)
        places = [place for _, place in seats]
        states, told = initial.begin(seats[0][0].experiment, places, states)
        report = clock.timed("evaluate", self.engine.assess, states, self.arrays)
        report = processes.fetch(report | _counters(states))
        for run, of in itertools.groupby(enumerate(seats), key=lambda pair: pair[1][0]):
            of = list(of)
            initial.keep(told, run.workdir, run.say)
            run.clock.add(clock.seconds, len(of) / len(seats))
            run.rows.add([place for _, (_, place) in of], report, [i for i, _ in of])
        return states


def _counters(states: State) -> dict[str, jax.Array]:
    return {name: getattr(states, name) for name in ("done", *COUNTERS)}


def train(
    experiment: Experiment,
    workdir: Workdir,
    say: Say,
    notice: processes.Notice | None = None,
    watch: Callable[[Training, float], None] | None = None,
) -> tuple[State, dict[str, float]]:
    """Train all seeds of a run to their ends -> (states of all seeds, seconds by kind).

    Goes on from the newest checkpoint. `say` prints one line. watch: gets the run and the seconds
    of each epoch; by default a line of it is said. Raises Interrupted as `Slots.run` does.
    """
    watch = watch or (lambda run, seconds: say(run.rows.line(seconds)))
    with Training(experiment, workdir, say) as training:
        Slots(experiment, len(experiment.seeds), [training]).run(watch, notice=notice)
        return training.states(), training.clock.seconds
