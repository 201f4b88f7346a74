"""Trained models out of workdirs: the experiment of a config.json and parameters of its steps.

    experiment = experiment_of(run, say)
    for restored in parameters(run, experiment, "best", say):
        restored.of_seed(0)

Nothing here writes into a workdir or takes its lock: a run under way can be looked at. This is the
only file of the analysis that builds experiments and reads checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import polars as pl
from absl import flags

from oa_jax.backbones import known
from oa_jax.configuration import defaults_taken
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.engine.program import Engine
from oa_jax.errors import UserError
from oa_jax.experiment import Experiment
from oa_jax.runs import checkpoint
from oa_jax.runs.run import check_same_data
from oa_jax.runs.stored import experiment_of as read_experiment
from oa_jax.runs.workdir import Workdir

from . import output
from .interventions import Intervened, modules_of
from .runs import Run

SPLITS = ("val", "test")
WHICH = ("best", "last", "all")
ATTEMPTS = 3  # a run under way deletes old steps while one looks


def define_flags() -> None:
    """Flags of every command that restores; defined once, whoever asks first."""
    if "which" in flags.FLAGS:
        return
    flags.DEFINE_enum("which", "best", WHICH, "Parameters: each seed's best, its last, every step.")
    flags.DEFINE_enum("split", "test", SPLITS, "Users whose tokens and ranks count.")
    flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where config.json says.")


def of_every_run(
    runs: list[Run], name: str, schema: dict, out: pathlib.Path, say, measure: Callable
) -> tuple[pl.DataFrame, int]:
    """Frame of `measure(run)` over the runs with GCA, written to `out` as `name`.

    A run that cannot be measured is said and left out. -> frame, exit status: 1 when some are.
    Raises UserError when none could be.
    """
    use_compilation_cache()
    frames, missing = [pl.DataFrame(schema=schema)], []
    for run in runs:
        if not run.places:
            say(f"{run.name}: no GCA: nothing to measure")
            continue
        try:
            frames.append(measure(run))
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


def experiment_of(run: Run, say, data_dir: str | None = None) -> Experiment:
    """The experiment that config.json describes, on the data that the run was trained on.

    `say` is told of fields that this version has and the run's did not. Raises UserError when the
    configuration or the data do not fit.
    """
    if run.config["backbone"] in known.NAMES:
        added = defaults_taken(known.fields(run.config["backbone"]), run.config)
        if added:
            say(f"{run.name}: of another version: {', '.join(added)} taken from the defaults")
    return _build(run.path, json.dumps([run.config, run.env], sort_keys=True), data_dir)


@functools.lru_cache(maxsize=4)
def _build(path: pathlib.Path, stored: str, data_dir: str | None) -> Experiment:
    """Kept, as several commands look at the same runs: data and compiled programs are reused."""
    return read_experiment(path, data_dir=data_dir)


def parameters(run: Run, experiment: Experiment, which: str, say) -> Iterator[Restored]:
    """The parameters of a run: of its newest readable step, or of every kept step.

    which: "best", each seed's best so far; "last", where each seed stands; "all", the last
    parameters at every kept step, oldest first. A step that cannot be read is said and passed
    over, as are seeds that diverged. Raises UserError when no step can be read.
    """
    directory = (run.path / "checkpoints").absolute()
    if not directory.is_dir():
        raise UserError(f"{directory}: no checkpoint: expected a run past its first save")
    keys = jax.vmap(jax.random.key)(experiment.seeds)
    abstract = jax.eval_shape(jax.vmap(backbone_of(experiment).init), keys)
    unreadable: dict[int, str] = {}

    def read(epoch):
        try:
            return checkpoint.read(directory, epoch, abstract, best=which == "best")
        except (OSError, ValueError, KeyError) as error:
            unreadable[epoch] = type(error).__name__
            say(f"{run.name}: step {epoch} cannot be read ({unreadable[epoch]}): passed over")
            return None

    n_found = 0
    for epoch in _candidates(directory, unreadable, newest_first=which != "all"):
        found = read(epoch)
        if found is not None:
            n_found += 1
            yield _checked(run, experiment, which, epoch, *found, say)
            if which != "all":
                return
    if not n_found:
        why = f" ({', '.join(sorted(set(unreadable.values())))})" if unreadable else ""
        raise UserError(f"{directory}: no step can be read{why}: expected at least one whole step")


def _candidates(directory, unreadable, newest_first):
    """Steps to try. Listed again when all are gone or bad: a run under way replaces them."""
    tried = set()
    for _ in range(ATTEMPTS):
        steps = [epoch for epoch in checkpoint.listed(directory) if epoch not in tried]
        for epoch in sorted(steps, reverse=newest_first):
            tried.add(epoch)
            yield epoch
        if tried - set(unreadable):
            return


def _checked(run, experiment, which, epoch, params, counters, say) -> Restored:
    finite_S = np.ones(len(experiment.seeds), bool)
    for leaf in jax.tree.leaves(params):
        finite_S &= np.isfinite(leaf).reshape(len(leaf), -1).all(1)
    diverged_S = counters["diverged_step"] > 0
    for seed, finite, diverged in zip(experiment.seeds, finite_S, diverged_S, strict=True):
        if diverged or not finite:
            why = "it diverged" if diverged else "its parameters are not finite"
            say(f"{run.name}: seed {seed} left out at step {epoch}: {why}")
    of_seed = counters["best_epoch" if which == "best" else "epoch"]
    kind = "kept" if which == "all" else which
    return Restored(kind, epoch, params, of_seed, finite_S & ~diverged_S)


def check_candidates(run: Run, experiment: Experiment) -> None:
    """Raise UserError when the candidates are not those that the run was ranked against."""
    if run.env["fingerprints"]:
        check_same_data(Workdir(run.path), {"fingerprints": experiment.identity()})


def ranking(experiment: Experiment, restored: Restored, split: str, part_of: str):
    """-> (function of interventions.variables -> {ranking's name: Ranks (S, R)}, GCA modules).

    One compiled program for all interventions of the seeds that are good.
    """
    slots, evaluation = np.flatnonzero(restored.good_S), experiment.evaluation
    n_rows, padded = (
        len(evaluation.rows[split]["target"]),
        evaluation.padded(evaluation.rows[split]),
    )
    block = {name: values[: evaluation.block_users] for name, values in padded.items()}
    backbone, names = backbone_of(experiment), evaluation.rankings
    modules = modules_of(backbone, restored.of_seed(int(slots[0])), block)
    changed = Intervened(backbone, part_of)
    settings = dataclasses.replace(experiment.engine.settings, backbone=changed)
    engine = Engine(settings, experiment.engine.axis)
    params = jax.device_put(jax.tree.map(lambda a: a[slots], restored.params))
    rows = jax.device_put(padded)

    def rank(arguments_of):
        found, _ = engine.final(arguments_of(params), rows, tuple(names), experiment.tables)
        found = jax.device_get(found)
        return {names[k]: jax.tree.map(lambda a: a[:, :n_rows], v) for k, v in found.items()}

    return rank, modules


def backbone_of(experiment: Experiment) -> Any:
    """The backbone that the experiment's programs are made of."""
    return experiment.engine.settings.backbone


def initial(experiment: Experiment) -> Restored:
    """The untrained parameters of all seeds: a null control."""
    states = experiment.engine.create(experiment.seeds, experiment.hparams())
    n_seeds = len(experiment.seeds)
    params = jax.tree.map(np.asarray, states.params)
    return Restored("init", 0, params, np.zeros(n_seeds, np.int32), np.ones(n_seeds, bool))
