"""A run under way: its files, and the states of its seeds that are in no slot of a program."""

import contextlib
import time

import jax
import numpy as np

from oa_jax import processes
from oa_jax.engine import program as engine_lib
from oa_jax.engine.state import State
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.runs.checkpoint import Checkpoints, Say
from oa_jax.runs.metrics_file import MetricsFile
from oa_jax.runs.workdir import Workdir

LONG_S = 20.0  # an epoch that takes longer is saved whatever `checkpoint_every` says
RARE = 20  # after a checkpoint for which training waited seconds, that many times as long none
STOPPED = "stopped of"  # beside a checkpoint's seconds: the max_epochs that the run did not reach


class Clock:
    """Seconds by kind; compilation is its own kind."""

    def __init__(self, engine: engine_lib.Engine, seconds: dict[str, float] | None = None):
        self.engine, self.seconds = engine, dict(seconds or {})

    def timed(self, kind: str, fn, *args):
        begin, compiled = time.perf_counter(), self.engine.compile_seconds
        out = jax.block_until_ready(fn(*args))
        compiled = self.engine.compile_seconds - compiled
        self.add({kind: time.perf_counter() - begin - compiled, "compile": compiled})
        return out

    def add(self, spent: dict[str, float], share: float = 1.0) -> None:
        for name, value in spent.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + share * value


class Training:
    """A run as a context, which waits for its checkpoints at its end. Goes on from the newest one,
    which may hold fewer seeds, or seeds that had reached a smaller max_epochs.

    save_seconds: checkpoints are at least that far apart, whatever `checkpoint_every` says.
    """

    def __init__(
        self, experiment: Experiment, workdir: Workdir, say: Say, save_seconds: float = 0.0
    ):
        self.experiment, self.workdir, self.say = experiment, workdir, say
        self.rows, self.hparams = MetricsFile(experiment, workdir), experiment.hparams()
        self.clock = Clock(experiment.engine)
        self.outside: dict[int, State] = {}  # by the seed's place in the run
        self.done = np.zeros(len(experiment.seeds), bool)
        self.epochs = np.zeros(len(experiment.seeds), int)
        self.stop = False  # its seeds shall end with the epoch under way
        self.step = 0  # names the checkpoints: the epochs of the program that this run was in
        self.restored_step = 0  # that of the checkpoint from which it went on
        self.saved_step: int | None = None  # the newest of them
        self.keeps = "last"  # of the ended run: all that it takes to go on, the "best" or "none"
        self._save_seconds, self._rest, self._saved = save_seconds, 0.0, time.monotonic()

    def __enter__(self) -> "Training":
        keep, directory = self.experiment.config.train.keep_checkpoints, self.workdir.checkpoints
        with contextlib.ExitStack() as opened:
            self.checkpoints = opened.enter_context(Checkpoints(directory, keep, self.say))
            opened.callback(self.rows.close)
            self._restore()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._opened.__exit__(*error)

    def _restore(self):
        found = restored(self.experiment, self.checkpoints)
        if not found:
            self.workdir.keep_rows({})
            return
        self.step, states, seconds, self.stop = found
        self.restored_step = self.saved_step = self.step
        saved = np.arange(len(states.done))
        self._check_steps(states)
        if states.params == () and not processes.fetch(states.done).all():
            raise UserError(
                f"{self.workdir.path}: only its best parameters were kept: expected a checkpoint "
                "to go on from"
            )
        self.clock.add(seconds)
        self.outside = {i: engine_lib.take_seeds(states, [i]) for i in saved}
        self.done[saved], self.epochs[saved] = processes.fetch((states.done, states.epoch))
        seeds, epochs = self.experiment.seeds[saved].tolist(), self.epochs[saved].tolist()
        missing = self.workdir.keep_rows(dict(zip(seeds, epochs, strict=True)))
        if missing:
            self.say(f"metrics.jsonl: {missing} rows of earlier epochs are missing, and stay so")
        self.say(f"going on after epoch {self.epochs.max()}")

    def _check_steps(self, states):
        """Batches are drawn by their number: others would be trained on without a word."""
        n = self.experiment.engine.settings.task.n_steps
        steps, epochs = processes.fetch((states.step, states.epoch))
        if (steps != n * epochs).any():
            raise UserError(
                f"{self.workdir.path}: saved after {steps.max()} steps in {epochs.max()} epochs: "
                f"expected {n} an epoch: begin anew, or go on with the version that began it"
            )

    def waiting(self) -> list[int]:
        """Places of the seeds that have not ended, those that have begun first."""
        return sorted(np.flatnonzero(~self.done).tolist(), key=lambda i: i not in self.outside)

    def states(self, inside: dict[int, State] | None = None) -> State:
        """States of the seeds that have begun, which are the first ones, in buffers of their own.
        inside: those of the seeds in slots."""
        found = self.outside | (inside or {})
        return engine_lib.join_seeds([found[i] for i in sorted(found)])

    def save(self, inside: dict[int, State]) -> None:
        states = self.states(inside)
        if self.done.all() and self.keeps == "best":
            states = states.replace(params=(), moments=())
        begin = time.monotonic()
        stopped = self.stop and self.done.all()
        beside = {STOPPED: self.experiment.config.train.max_epochs} if stopped else {}
        seconds = self.clock.seconds | beside
        self.clock.timed("save", self.checkpoints.save, self.step, states, seconds)
        self.saved_step, self._saved = self.step, time.monotonic()
        waited = self._saved - begin  # for the checkpoint before to be written, among others
        self._rest = RARE * waited if waited > 1 else 0.0

    @processes.first_does
    def is_due(self, seconds: float) -> bool:
        """Whether the epoch that has ended, and took `seconds`, is one to save."""
        if self.done.all():
            return self.keeps != "none"
        since, is_long = time.monotonic() - self._saved, seconds >= LONG_S
        if since < self._save_seconds or (since < self._rest and not is_long):
            return False
        return is_long or self.step % self.experiment.config.train.checkpoint_every == 0


def restored(
    experiment: Experiment, checkpoints: Checkpoints
) -> tuple[int, State, dict[str, float], bool] | None:
    """(step, states, seconds by kind, whether the run was stopped before its time and not extended
    since) of the newest step that can be read, None without any. The states are those of the seeds
    that it has, `done` by a configuration that may allow more epochs than it did."""
    config, hparams, seeds = experiment.config, experiment.hparams(), experiment.seeds

    def of_first(n_seeds):
        return {name: values[:n_seeds] for name, values in hparams.items()}

    def abstract(n_seeds):
        return experiment.engine.abstract(seeds[:n_seeds], of_first(n_seeds))

    if not (found := checkpoints.restore_newest(abstract)):
        return None
    step, states, seconds = found
    states = states.replace(hparams=of_first(len(states.done)))
    done = experiment.engine.settings.schedule.is_over(states)
    stopped = seconds.pop(STOPPED, None) == config.train.max_epochs and len(done) == config.seeds
    return step, states.replace(done=done | stopped), seconds, stopped
