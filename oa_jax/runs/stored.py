"""A stored run read back: its experiment and its parameters. Nothing is written, no lock taken."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from oa_jax import experiment as experiment_lib
from oa_jax import files
from oa_jax.engine.state import State
from oa_jax.errors import UserError
from oa_jax.events.log import InteractionLog
from oa_jax.experiment import Experiment
from oa_jax.runs import checkpoint
from oa_jax.runs.run import check_same_data, stored_config
from oa_jax.runs.training import restored
from oa_jax.runs.workdir import Workdir, listed

ATTEMPTS = 3  # a run under way deletes old steps while one looks


def experiment_of(
    path: pathlib.Path,
    log: InteractionLog | None = None,
    data_dir: str | None = None,
    candidates: Callable | None = None,
    mesh: str = "",
) -> Experiment:
    """The experiment that a workdir's config.json describes, on the data that it was trained on.

    log: those data, where they have no name of their own. data_dir: where they lie now.
    candidates: `no_candidates` where nobody is ranked. mesh: the devices of here. Raises UserError
    when the configuration or the data do not fit, or the text tables are others.
    """
    workdir = Workdir(path)
    config = stored_config(workdir).replace(mesh=mesh)
    if data_dir:
        config = config.replace(data={"dir": data_dir})
    experiment = experiment_lib.build(config, log, candidates)
    check_same_data(workdir, experiment.data.identity())
    return experiment


def no_candidates(log, split, rows) -> dict:
    """Sampled candidates take a while to draw."""
    return {}


def newest_parameters(
    path: pathlib.Path,
    experiment: Experiment,
    best: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Parameters of all seeds and counters of the newest step that can be read: see
    `checkpoint.read`. Raises UserError when there is no such step, or when a finished run's results
    are of a later one."""
    step, params, counters = next(steps(path, experiment, best, say))
    summary = pathlib.Path(path) / "summary.json"
    per_seed = files.read_json(summary).get("per_seed", []) if summary.exists() else []
    for name, found in (("epochs", "epoch"), ("best_epoch", "best_epoch")):
        stored = [entry.get(name) for entry in per_seed]
        if per_seed and stored != (there := counters[found].tolist()):
            raise UserError(
                f"{summary}: {name} {stored}, but {there} in checkpoint {step}, the newest that "
                "can be read: expected that of the results"
            )
    return params, counters


def newest_states(
    path: pathlib.Path, experiment: Experiment, say: Callable[[str], None] = lambda line: None
) -> tuple[int, State, dict[str, float], bool]:
    """As `training.restored`. Raises UserError when there is no step, or when it has fewer seeds
    than the configuration, as an extension begins with."""
    directory, found = Workdir(path).checkpoints, None
    if directory.is_dir():
        with checkpoint.Checkpoints(directory, say=say) as checkpoints:
            found = restored(experiment, checkpoints)
    if found is None:
        raise UserError(f"{directory}: no checkpoint: expected a run past its first save")
    n_seeds, asked = len(found[1].done), len(experiment.seeds)
    if n_seeds != asked:
        raise UserError(
            f"{directory}: of {n_seeds} seeds, config.json has {asked}: expected the extension "
            "to go on: train --extend"
        )
    return found


def steps(
    path: pathlib.Path,
    experiment: Experiment,
    best: bool = True,
    say: Callable[[str], None] = lambda line: None,
    newest_first: bool = True,
) -> Iterator[tuple[int, Any, dict[str, np.ndarray]]]:
    """(epoch, parameters, counters) of every step that can be read: see `checkpoint.read`.

    say: is told of a step that cannot. Raises UserError when there is none that can.
    """
    directory, found = Workdir(path).checkpoints, False
    wrong: dict[int, str] = {}
    keys = jax.vmap(jax.random.key)(experiment.seeds)
    abstract = jax.eval_shape(jax.vmap(experiment.engine.settings.backbone.init), keys)
    for _ in range(ATTEMPTS):
        for step in sorted(set(listed(directory)) - set(wrong), reverse=newest_first):
            try:
                read = checkpoint.read(directory, step, abstract, best)
            except checkpoint.UNREADABLE as error:
                wrong[step] = " ".join(str(error).split())[:160] or type(error).__name__
                say(f"step {step} cannot be read ({wrong[step]}): passed over")
                continue
            found = True
            yield step, *read
        if found:
            return
    why = ", ".join(sorted(set(wrong.values()))) or "there is none"
    raise UserError(f"{directory}: no checkpoint can be read ({why}): expected a whole step")
