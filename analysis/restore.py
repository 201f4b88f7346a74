"""Trained models out of workdirs: the experiment of a config.json and parameters of its steps.

    experiment = experiment_of(run, say)
    for restored in parameters(run, experiment, "best", say):
        restored.of_seed(0)

Nothing here writes into a workdir or takes its lock: a run under way can be looked at. This is the
only file of the analysis that builds experiments and reads checkpoints.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import polars as pl
from absl import flags

from oa_jax import files
from oa_jax.backbones import known
from oa_jax.configuration import defaults_taken
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.evaluation import SPLITS
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Experiment
from oa_jax.runs import stored

from . import output
from .runs import Run

WHICH = ("best", "last", "all")


def define_flags() -> None:
    """Flags of every command that restores."""
    flags.DEFINE_enum("which", "best", WHICH, "Parameters: each seed's best, its last, every step.")
    flags.DEFINE_enum("split", "test", SPLITS, "Users whose tokens and ranks count.")
    flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where config.json says.")


def of_every_run(
    runs: list[Run], name: str, schema: dict, out: pathlib.Path, say, measure: Callable, **asked
) -> tuple[pl.DataFrame, int]:
    """Frame of `measure(run, which, split, say, …)`, with what the flags of this file ask for, over
    the runs with GCA, written to `out` as `name` with the digest of each.

    A run that cannot be measured is said and left out. -> frame, exit status: 1 when some are.
    Raises UserError when none could be.
    """
    use_compilation_cache()
    options = flags.FLAGS
    asked |= {"which": options.which, "split": options.split, "data_dir": options.data_dir}
    frames, missing = [pl.DataFrame(schema=schema | output.columns("digest"))], []
    for run in runs:
        if not run.places:
            say(f"{run.name}: no GCA: nothing to measure")
            continue
        try:
            found = measure(run, say=say, **asked)
            frames.append(found.with_columns(digest=pl.lit(run.digest)))
        except UserError as error:
            missing.append(str(error))
            say(f"{run.name}: left out: {error}")
    if missing and len(frames) == 1:
        raise UserError(missing[0])
    frame = pl.concat(frames)
    output.write_frame(out, name, frame)
    say(f"{len(frame)} values in {out / name}.parquet and .csv")
    return frame, 1 if missing else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Restored:
    """Parameters of all seeds at one step.

    kind: best | last | kept | init. checkpoint: epoch of the step that they were read from.
    params: numpy leaves (S, …). epoch_S: the epoch after which each seed had these parameters.
    good_S: seeds that neither diverged nor hold a value that is not finite.
    """

    kind: str
    checkpoint: int
    params: Any
    epoch_S: np.ndarray
    good_S: np.ndarray

    def of_seed(self, slot: int):
        return jax.tree.map(lambda a: a[slot], self.params)


def experiment_of(
    run: Run, say, data_dir: str | None = None, data: InteractionLog | None = None
) -> Experiment:
    """The experiment that config.json describes, on the data that the run was trained on.

    `say` is told of fields that this version has and the run's did not. data_dir: where the data
    lie now; data: the events, where they are in no prepared set. Raises UserError when the
    configuration or the data do not fit.
    """
    values = files.read_json(run.path / "config.json", "the workdir of a run")
    if added := defaults_taken(known.fields(run.config["backbone"]), values):
        say(f"{run.name}: of another version: {', '.join(added)} taken from the defaults")
    if data is not None:  # arrays, by which nothing can be kept
        return stored.experiment_of(run.path, data, data_dir)
    return _build(run.path, json.dumps([run.config, run.env], sort_keys=True), data_dir)


@functools.lru_cache(maxsize=4)
def _build(path: pathlib.Path, texts: str, data_dir: str | None) -> Experiment:
    """Kept, as several commands look at the same runs: data and compiled programs are reused."""
    return stored.experiment_of(path, data_dir=data_dir)


def parameters(run: Run, experiment: Experiment, which: str, say) -> Iterator[Restored]:
    """The parameters of a run: of its newest readable step, or of every kept step.

    which: "best", each seed's best so far; "last", where each seed stands; "all", the last
    parameters at every kept step, oldest first. A step that cannot be read is said and passed
    over, as are seeds that diverged. Raises UserError when no step can be read.
    """

    def tell(line):
        say(f"{run.name}: {line}")

    found = stored.steps(run.path, experiment, which == "best", tell, which != "all")
    for epoch, params, counters in found if which == "all" else itertools.islice(found, 1):
        leaves = jax.tree.leaves(params)
        finite_S = np.all([np.isfinite(a).reshape(len(a), -1).all(1) for a in leaves], 0)
        diverged_S = counters["diverged_step"] > 0
        for seed, finite, diverged in zip(experiment.seeds, finite_S, diverged_S, strict=True):
            if diverged or not finite:
                why = "it diverged" if diverged else "its parameters are not finite"
                tell(f"seed {seed} left out at step {epoch}: {why}")
        of_seed = counters["best_epoch" if which == "best" else "epoch"]
        kind = "kept" if which == "all" else which
        yield Restored(kind, epoch, params, of_seed, finite_S & ~diverged_S)


def initial(experiment: Experiment) -> Restored:
    """The untrained parameters of all seeds: a null control."""
    states = experiment.engine.create(experiment.seeds, experiment.hparams())
    n_seeds = len(experiment.seeds)
    params = jax.tree.map(np.asarray, states.params)
    return Restored("init", 0, params, np.zeros(n_seeds, np.int32), np.ones(n_seeds, bool))
