"""Sweeps: the runs of a study as a stream through compiled programs.

Runs that one program can train share its slots: when a seed ends, its slot is given to the next
one. Every run is an ordinary workdir, so a sweep goes on where it was, and several workers can
share its folder.
"""

import contextlib
import dataclasses
import errno
import itertools
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax import files, processes
from oa_jax.backbones import known
from oa_jax.configuration import Config, first_difference
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.mesh import bytes_on_device
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.runs import index, initial, loop
from oa_jax.runs import study as study_lib
from oa_jax.runs.claims import Claims
from oa_jax.runs.run import begin, conclude
from oa_jax.runs.summary import check_summary
from oa_jax.runs.training import Say, Training
from oa_jax.runs.workdir import FAILED, Workdir, listed

KEEP = ("last", "best", "none")  # checkpoints of a run that has ended
SAVE_SECONDS = 300.0  # between two checkpoints of a run under way, at least
INDEX_SECONDS = 60.0  # between two writings of the index
MOST_SLOTS = 64


@dataclasses.dataclass
class Progress:
    """What is to be seen of a sweep under way; `watch` is called when it has changed."""

    runs: int
    finished: int = 0  # by any worker, as far as this one knows
    found: int = 0  # of these, when it began
    before: float = 0.0  # of those that ended here since, the parts trained before, in runs
    failed: list[str] = dataclasses.field(default_factory=list)
    diverged: list[str] = dataclasses.field(default_factory=list)
    running: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # epochs by seed
    program: str = ""
    slots: int = 0
    best: tuple[float, str] = (-1.0, "")  # mean validation score over seeds, and whose
    uses: list[loop.Use] = dataclasses.field(default_factory=list)
    compiling: float = 0.0  # seconds
    done_here: int = 0
    begun: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def busy(self) -> float:
        """Share of the slots that trained, over all epochs."""
        return sum(u.busy for u in self.uses) / max(sum(u.slots for u in self.uses), 1)

    @property
    def cost(self) -> str:
        """How the time since the begin was used, in words."""
        parts = ("seconds", "host", "other")
        epochs, host, other = (sum(getattr(use, part) for use in self.uses) for part in parts)
        seconds, work = time.monotonic() - self.begun, epochs + other
        return (
            f"slots {self.busy:.0%} busy; {seconds:.0f} s are {epochs:.0f} s of epochs, "
            f"{other:.0f} s of evaluation and files, {self.compiling:.0f} s of compiling; the "
            f"host's part is {host / max(epochs, 1e-9):.1%} of the epochs; without compiling "
            f"{(seconds - self.compiling) / max(work, 1e-9):.2f} times the work"
        )

    @property
    def seconds_left(self) -> float:
        """By what all workers have trained of the runs that ended since this one began."""
        spent, ended = time.monotonic() - self.begun, self.finished - self.found - self.before
        return spent / (ended or 1) * (self.runs - self.finished - len(self.failed))


class Sweep:
    """The runs of a study in a folder.

    slots: of each program; None: by memory. keep: checkpoints of an ended run, "last" with all that
    it takes to go on, "best" parameters alone, or "none". watch: gets the `Progress`.
    """

    more_come = False  # runs that are not known when a program begins

    def __init__(
        self,
        runs: Mapping[str, Config],
        out: pathlib.Path,
        say: Say,
        slots: int | None = None,
        keep: str = "last",
        watch: Callable[[Progress], None] = lambda progress: None,
        save_seconds: float = SAVE_SECONDS,
    ):
        self.runs, self.out, self.say, self.watch = dict(runs), out, say, watch
        self.slots, self.keep, self.save_seconds = slots, keep, save_seconds
        self.progress = Progress(len(self.runs))
        self._notice, self._indexed = processes.Notice(), time.monotonic()
        self._open: dict[str, contextlib.ExitStack] = {}  # files of the runs in the program
        self._counted: set[str] = set()
        self._last = -1  # place in the study of the program that this worker took last
        self._claims = Claims(out / ".workers")

    def run(self) -> Progress:
        """Train what is not finished. Raises Interrupted, with everything saved, when told to
        leave, and UserError when the folder is another study's or cannot be written."""
        use_compilation_cache(self.say)
        files.check_folder(self.out, "study.json", "--out")
        with self._claims.alone():
            self._claim_folder()
        with self._notice, self._claims:
            self._count_finished()
            self.progress.found = self.progress.finished
            try:
                while group := self._next_program():
                    self._train(group)
            finally:
                self._write_index()
            if others := self._claims.others(self._open_runs()):
                self.say(f"{len(others)} runs are with other workers")
        return self.progress

    def _workdir(self, name) -> Workdir:
        return Workdir(self.out / name)

    def _claim_folder(self):
        """Store the study in the folder, unless it has another."""
        path = self.out / "study.json"
        asked = {name: config.to_dict() for name, config in self.runs.items()}
        if not path.exists():
            files.write_json(path, asked)
            return
        there = files.read_json(path, "the runs of a study")
        for name in there:
            if name not in asked:
                raise UserError(f"{path}: run {name}: not in the study of now: expected the same")
            if difference := first_difference(known.resolve(there[name]), self.runs[name]):
                raise UserError(f"{path}: run {name}: {difference}: expected the study of before")
        if more := len(asked) - len(there):
            self.say(f"{more} runs are new in the study")
            files.write_json(path, asked)

    def _open_runs(self) -> dict[str, Config]:
        return {
            name: config
            for name, config in self.runs.items()
            if name not in self.progress.failed and not self._workdir(name).is_finished
        }

    def _next_program(self) -> dict[str, Config] | None:
        """A program with open runs, of those that the fewest others work on.

        Neighbours in a study are often one program to the compiler, whose cache then has it. So it
        is the one after this worker's last, or, where others work, from the middle of the longest
        stretch that is free: two workers would compile the same at once.
        """
        others = self._claims.others(runs := self._open_runs())
        groups = study_lib.programs(runs)
        shared = {i: len(set(group) & others) for i, group in enumerate(groups)}
        free = [i for i, group in enumerate(groups) if set(group) - others]
        free = [i for i in free if shared[i] == min(shared[j] for j in free)]
        if not free:
            return None
        places = {name: place for place, name in enumerate(self.runs)}
        behind = (i for i, group in enumerate(groups) if places[next(iter(group))] > self._last)
        if self._last >= 0 and (following := next(behind, None)) in free:
            return groups[following]
        stretches = itertools.groupby(range(len(groups)), free.__contains__)
        longest = max((list(part) for is_free, part in stretches if is_free), key=len)
        return groups[longest[len(longest) // 2 if others else 0]]

    def _train(self, group: dict[str, Config]):
        """Train the runs of a program until nobody waits."""
        first = next(iter(group))
        try:
            experiment = experiment_lib.build(group[first])
        except UserError as error:  # of its data or sizes: those of every run of the program
            others = self._claims.others(group)
            for name in (name for name in group if name not in others):
                self._fail(name, error)
            return
        self.say(f"program of {len(group)} runs: {first}")
        wanted = sum(config.seeds for config in group.values())
        n_slots = self.slots or default_slots(experiment, wanted)
        if not (self.slots and self.more_come):
            n_slots = min(n_slots, wanted)
        slots = loop.Slots(experiment, n_slots, self._queue(group, experiment))
        self.progress.uses.append(slots.use)
        self.progress.program, self.progress.slots = first, slots.size
        try:
            slots.run(self._after_epoch, self._end, self._notice)
        finally:
            self.progress.compiling += experiment.engine.compile_seconds
            for files_of_run in self._open.values():
                files_of_run.close()
            self._open.clear()

    def _queue(self, group, experiment) -> Iterator[Training]:
        waiting = list(group)
        while waiting and (name := self._claims.take(waiting)):
            waiting.remove(name)
            self._last = list(self.runs).index(next(iter(group)))
            if self._workdir(name).is_finished:  # by another worker, meanwhile
                self._count_finished()
                continue
            config = group[name].replace(data={"split": experiment.config.data.split})
            training = self._begin(name, dataclasses.replace(experiment, config=config))
            if training:
                yield training

    def _begin(self, name, experiment: Experiment) -> Training | None:
        def say(line):
            self.say(f"{name}: {line}")

        try:
            with contextlib.ExitStack() as stack:
                workdir = stack.enter_context(self._workdir(name))
                if source := experiment.config.train.init_from:
                    initial.read(source)
                begin(experiment, workdir)
                training = Training(experiment, workdir, say, self.save_seconds)
                training.keeps = self.keep
                stack.enter_context(training)
                self._open[name] = stack.pop_all()
        except UserError as error:
            self._fail(name, error)
            return None
        (workdir.path / FAILED).unlink(missing_ok=True)
        if training.done.all():  # killed before its last evaluation
            self._end(training)
            return None
        return training

    def _after_epoch(self, training: Training, _):
        self.progress.running[training.workdir.path.name] = training.epochs.tolist()
        self.watch(self.progress)

    def _end(self, training: Training):
        """Rank, summarise and tidy a run whose seeds have ended."""
        name, workdir = training.workdir.path.name, training.workdir
        seeds = training.experiment.seeds.tolist()
        try:
            with self._open.pop(name):
                workdir.keep_rows(dict(zip(seeds, training.epochs.tolist(), strict=True)))
                training.checkpoints.wait()  # else its summary might be of parameters that are lost
                of = training.experiment, workdir, training.states(), training.clock.seconds
                summary = conclude(*of, stopped=training.stop)
        except UserError as error:
            return self._fail(name, error)
        if self.keep == "none":
            shutil.rmtree(workdir.checkpoints, ignore_errors=True)
        if self.keep == "best":  # the last step alone has only these
            for step in listed(workdir.checkpoints)[:-1]:
                shutil.rmtree(workdir.checkpoints / str(step), ignore_errors=True)
        self.progress.done_here += 1
        self.progress.before += training.restored_step / max(training.step, 1)
        self._count_finished()
        self._claims.free(name)
        here = self.progress
        self.say(
            f"{here.finished}/{here.runs} {name}: {index.in_words(summary)}; "
            f"slots {here.busy:.0%} busy, about {here.seconds_left / 60:.0f} min left"
        )
        if time.monotonic() - self._indexed > INDEX_SECONDS:
            self._write_index()

    def _count_finished(self):
        """Take in what has ended, here and elsewhere."""
        for name in [name for name in self.runs if name not in self._counted]:
            if self._workdir(name).is_finished:
                self._counted.add(name)
                self._count(name)
        self.watch(self.progress)

    def _count(self, name):
        summary = self._workdir(name).read_json("summary.json")
        check_summary(self.out / name / "summary.json", summary)
        self.progress.finished += 1
        self.progress.running.pop(name, None)
        if any(entry["diverged_step"] for entry in summary["per_seed"]):
            self.progress.diverged.append(name)
        score = index.score_of(summary["mean"], summary.get("watched"))
        self.progress.best = max(self.progress.best, (score, name))

    def _fail(self, name, error):
        if getattr(error.__context__, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise error  # a disk that is full is that of all
        self._claims.free(name)
        self._record(name, error)

    def _record(self, name, error):
        self.progress.failed.append(name)
        with contextlib.suppress(UserError):
            files.write_json(self.out / name / FAILED, {"error": str(error)})
        self.say(f"{name} failed: {error}")

    def _write_index(self):
        with self._claims.alone():
            index.write(self.out, self.runs)
        self._indexed = time.monotonic()


def default_slots(experiment: Experiment, wanted: int) -> int:
    """Slots of a program of `wanted` seeds: what the memory of the device holds, at most 64; on a
    CPU 10, as more are no faster there, and where the data stream, whose chunks are not known
    before."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if not limit or not experiment.config.data.resident:
        return max(10, experiment.config.seeds)
    # By the program of as many as there may be: if it fits, it is the one that will run.
    most = min(wanted, MOST_SLOTS)
    while True:
        try:
            memory = memory_of(experiment, most)
            break
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what is too large
            if "RESOURCE_EXHAUSTED" not in str(error) or most == 1:
                raise
            most //= 2
    if memory is None:
        return max(10, experiment.config.seeds)
    fixed, used = memory
    return max(1, min(most, int(most * (0.85 * limit - fixed) / max(used, 1))))


def memory_of(experiment: Experiment, n_seeds: int) -> tuple[int, int] | None:
    """Bytes of an epoch's program on a device: of the data, and of what grows with its seeds. None
    if the compiler does not say."""
    engine, seeds = experiment.engine, np.resize(experiment.seeds, n_seeds)
    arrays = jax.eval_shape(lambda a: a, experiment.train_arrays())
    hparams = jax.tree.map(lambda a: np.resize(a, n_seeds), experiment.hparams())
    args = (engine.abstract(seeds, hparams), arrays, engine.capacity(seeds, 0))
    memory = engine.compiled("epoch", *args).memory_analysis()
    if memory is None:
        return None
    data = bytes_on_device(arrays)
    return data, memory.argument_size_in_bytes - data + memory.temp_size_in_bytes
