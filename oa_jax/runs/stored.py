"""A stored run read back: its experiment and its parameters. Nothing is written, no lock taken."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Experiment
from oa_jax.files import read_json
from oa_jax.runs import checkpoint
from oa_jax.runs.run import check_same_data, checked_config
from oa_jax.runs.workdir import Workdir


def experiment_of(
    path: pathlib.Path, log: InteractionLog | None = None, data_dir: str | None = None
) -> Experiment:
    """The experiment that a workdir's config.json describes, on the data that it was trained on.

    log: those data, where they have no name of their own. data_dir: where they lie now. Raises
    UserError when the configuration or the data do not fit.
    """
    config = checked_config(read_json(path / "config.json", "a run"), path / "config.json")
    if data_dir:
        config = config.replace(data={"dir": data_dir})
    experiment = experiment_lib.build(config, log)
    check_same_data(Workdir(path), {"fingerprints": {"data": experiment.data.log.fingerprint()}})
    return experiment


def newest_parameters(
    path: pathlib.Path,
    experiment: Experiment,
    best: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters of all seeds, leaves (S, …) on the host, of the newest step that can be read.

    best: each seed's best parameters, not its last. -> (parameters, {"epoch", "best_epoch",
    "diverged_step"}: (S,)). Raises UserError when there is no such step.
    """
    directory = (path / "checkpoints").absolute()
    steps = checkpoint.listed(directory) if directory.is_dir() else []
    if not steps:
        raise UserError(f"{directory}: no checkpoint: expected a run past its first save")
    keys = jax.vmap(jax.random.key)(experiment.seeds)
    abstract = jax.eval_shape(jax.vmap(experiment.engine.settings.backbone.init), keys)
    for step in reversed(steps):
        try:
            return checkpoint.read(directory, step, abstract, best)
        except (OSError, ValueError, KeyError) as error:
            reason = type(error).__name__
            say(f"{directory / str(step)}: cannot be read ({reason}): the step before is taken")
    raise UserError(f"{directory}: no checkpoint can be read ({reason}): expected a whole step")
