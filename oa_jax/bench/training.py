"""Training steps for several numbers of seeds, evaluation and checkpoints of one experiment."""

from __future__ import annotations

import functools
import pathlib
import resource
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.bench import work
from oa_jax.bench.clock import seconds_of
from oa_jax.engine import step as step_lib
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.runs.checkpoint import Checkpoints

CPU_STEPS = 4


class Training:
    """What is measured of an experiment. Seeds are the first of `experiment.seeds`.

    n_steps: batches in one measurement, at most an epoch; 0 is a few on a CPU, an epoch elsewhere.
    n_users: evaluation users in one.
    """

    def __init__(self, experiment: Experiment, n_steps: int, n_users: int):
        if not experiment.config.data.resident:
            raise UserError(
                "--config.data.resident=False: expected True: data that come from files while "
                "the device works are not measured"
            )
        self.experiment, self.engine = experiment, experiment.engine
        self.task, evaluation = experiment.data.task, experiment.evaluation
        if not n_steps and jax.default_backend() == "cpu":
            n_steps = CPU_STEPS
        self.n_steps = min(n_steps or self.task.n_steps, self.task.n_steps)
        arrays = experiment.train_arrays()
        self.arrays = {name: arrays[name] for name in ("train", "tables") if name in arrays}
        self.capacity = self.engine.capacity(experiment.seeds, 0)
        rows = evaluation.rows["test"]
        self.n_users = min(n_users, len(rows["target"]))
        some = {name: values[: self.n_users] for name, values in rows.items()}
        self.rows = jax.tree.map(jnp.asarray, evaluation.padded(some))

    def prepare(self, n_seeds: int) -> dict[str, float]:
        """Compile and run the steps once -> seconds and bytes of doing so.

        program_bytes: arguments, temporaries and results of the compiled program on one device.
        peak_bytes: the most that the device (a CPU: the process) ever held, so call this with
        growing numbers of seeds.
        """
        states = self._states(n_seeds)
        before = self.engine.compile_seconds
        compiled = self.engine.compile_steps(states, self.arrays, self.capacity, self.n_steps)
        out = {"compile_seconds": self.engine.compile_seconds - before}
        memory = compiled.memory_analysis()
        if memory is not None:
            out["program_bytes"] = float(
                memory.argument_size_in_bytes
                + memory.temp_size_in_bytes
                + memory.output_size_in_bytes
                - memory.alias_size_in_bytes
            )
        states, losses = self._steps(states)
        if not np.isfinite(jax.device_get(losses)).all():
            raise UserError(
                f"{n_seeds} seeds: a loss is not finite: expected one that can be timed"
            )
        return out | {"peak_bytes": peak_bytes()}

    def steps(self, n_seeds: int) -> float:
        """Seconds of the steps of that many seeds, from fresh states."""
        states = jax.block_until_ready(self._states(n_seeds))
        return seconds_of(self._steps, states)

    def _steps(self, states):
        return self.engine.steps(states, self.arrays, self.capacity, self.n_steps)

    def _states(self, n_seeds):
        hparams = jax.tree.map(lambda a: a[:n_seeds], self.experiment.hparams())
        return self.engine.create(self.experiment.seeds[:n_seeds], hparams)

    @functools.cached_property
    def work(self) -> work.Work:
        """The least work of one step of one seed."""
        settings, arrays = self.engine.settings.on(self.arrays.get("tables")), self.arrays["train"]
        state = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype),
            self.engine.abstract(self.experiment.seeds[:1], self._one_hparams()),
        )
        rows_B = jax.ShapeDtypeStruct((self.task.batch_size,), np.int32)

        def step(state, rows_B):
            # The best parameters are not touched by a step.
            out, aux = step_lib.train_step(settings, self.capacity, state, rows_B, arrays)
            return out.params, out.moments, aux

        return work.count(step, state.replace(best_params=()), rows_B)

    def _one_hparams(self):
        return jax.tree.map(lambda a: a[:1], self.experiment.hparams())

    def evaluations(self):
        """{ranking: a case that returns the seconds of ranking `n_users` by one seed}."""
        params, kinds = self._states(1).params, self.experiment.evaluation.rankings
        out = {}
        for kind, name in kinds.items():
            args = (params, self.rows, (kind,), self.experiment.tables)
            jax.block_until_ready(self.engine.final(*args))
            out[name] = functools.partial(seconds_of, self.engine.final, *args)
        return out

    def checkpoint(self, n_seeds: int) -> dict[str, float]:
        """Seconds until a checkpoint of that many seeds is on disk, and its bytes."""
        states = jax.block_until_ready(self._states(n_seeds))
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            with Checkpoints(pathlib.Path(folder)) as checkpoints:
                checkpoints.save(1, states, {})
            seconds = time.perf_counter() - begin
            files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
            return {"seconds": seconds, "bytes": float(sum(path.stat().st_size for path in files))}


def peak_bytes() -> float:
    """The most memory in use so far: of the first device, or on a CPU of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
