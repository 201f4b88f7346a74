"""What is measured of an experiment: training steps of some seeds, evaluation, a checkpoint."""

import functools
import pathlib
import resource
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from oa_jax.bench import work
from oa_jax.bench.rounds import seconds_of
from oa_jax.engine import step as step_lib
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.runs.checkpoint import Checkpoints


class Cases:
    """The cases of one experiment. Seeds are the first of `experiment.seeds`.

    n_steps: batches in one measurement, at most an epoch; 0 is 4 on a CPU, 50 elsewhere.
    n_users: evaluation users in one. Raises UserError where data are read in chunks.
    """

    def __init__(self, experiment: Experiment, n_steps: int, n_users: int):
        if not experiment.config.data.resident:
            raise UserError(
                "--config.data.resident=False: expected True: data that come from files while "
                "the device works are not measured"
            )
        self.experiment, self.engine = experiment, experiment.engine
        self.task, evaluation = experiment.data.task, experiment.evaluation
        default = 4 if jax.default_backend() == "cpu" else 50
        self.n_steps = min(n_steps or default, self.task.n_steps)
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
        growing numbers of seeds. Raises UserError for a loss that is not finite.
        """
        states = self._states(n_seeds)
        before = self.engine.compile_seconds
        compiled = self.engine.compiled("steps", states, self.arrays, self.capacity, self.n_steps)
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
        return seconds_of(self._steps, jax.block_until_ready(self._states(n_seeds)))

    def _steps(self, states):
        return self.engine.steps(states, self.arrays, self.capacity, self.n_steps)

    def _states(self, n_seeds):
        hparams = jax.tree.map(lambda a: a[:n_seeds], self.experiment.hparams())
        return self.engine.create(self.experiment.seeds[:n_seeds], hparams)

    @functools.cached_property
    def work(self) -> work.Work:
        """The least work of one step of one seed."""
        settings, arrays = self.engine.settings.on(self.arrays.get("tables")), self.arrays["train"]
        states = self.engine.abstract(self.experiment.seeds, self.experiment.hparams())
        state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), states)
        rows_B = jax.ShapeDtypeStruct((self.task.batch_size + self.task.n_support,), np.int32)

        def step(state, rows_B):
            out, aux = step_lib.train_step(settings, self.capacity, state, rows_B, arrays)
            return out.params, out.moments, aux

        # The best parameters are not touched by a step.
        return work.count(step, state.replace(best_params=()), rows_B)

    def evaluations(self) -> dict[str, Callable[[], float]]:
        """{ranking: a case that returns the seconds of ranking `n_users` by one seed}."""
        params, out = self._states(1).params, {}
        for kind, name in self.experiment.evaluation.rankings.items():
            args = (params, self.rows, (kind,), self.experiment.tables)
            jax.block_until_ready(self.engine.final(*args))
            out[name] = functools.partial(seconds_of, self.engine.final, *args)
        return out

    def checkpoint(self, n_seeds: int) -> dict[str, float]:
        """Seconds until a checkpoint of that many seeds is on disk, and its bytes."""
        states = jax.block_until_ready(self._states(n_seeds))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)

            def save():
                with Checkpoints(path) as checkpoints:
                    checkpoints.save(1, states, {})

            seconds = seconds_of(save)
            sizes = (file.stat().st_size for file in path.rglob("*") if file.is_file())
            return {"seconds": seconds, "bytes": float(sum(sizes))}


def peak_bytes() -> float:
    """The most memory in use so far: of the first device, or on a CPU of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
