"""Workdirs of runs that were never trained: their parameters are those of the start, times 3."""

import functools
import pathlib
import tempfile

import jax
import numpy as np
import toy

from oa_jax.runs.checkpoint import Checkpoints
from oa_jax.runs.run import environment
from oa_jax.runs.workdir import Workdir


def stored(experiment, path) -> pathlib.Path:
    states = experiment.engine.create(experiment.seeds, experiment.hparams())
    # As they are at the start, scores are so near to each other that rounding could order them.
    larger = jax.tree.map(lambda a: 3 * a, states.best_params)
    with Workdir(path) as workdir:
        workdir.claim(experiment.config.to_dict())
        workdir.write_json("env.json", environment(experiment))
        with Checkpoints(workdir.checkpoints) as checkpoints:
            checkpoints.save(1, states.replace(best_params=larger), {})
    return path


@functools.cache
def run_of(backbone, gca="0-1", **changes):
    """(experiment, workdir) of the smallest run of a backbone."""
    experiment = toy.small_experiment(backbone, f"pair=synthetic,gca={gca}", **changes)
    return experiment, stored(experiment, pathlib.Path(tempfile.mkdtemp()) / "run")


def every_score(experiment, params, rows):
    """(R, 1 + I) scores of the evaluation's rows, by the backbone itself."""
    backbone = experiment.engine.settings.on(experiment.tables).backbone
    ids = np.arange(1 + sum(experiment.data.log.n_items))

    @jax.jit
    def scores(params, rows):
        return backbone.score(backbone.index(params), backbone.encode(params, rows), ids)

    return np.asarray(scores(params, rows))


def sorted_items(scores, domain, seen, n_items):
    """Ids of the items that count, the best first."""
    n_a, n_all = n_items[0], sum(n_items)
    ids = np.arange(n_a + 1, n_all + 1) if domain else np.arange(1, n_a + 1)
    ids = ids[~np.isin(ids, seen)]
    return ids[np.argsort(-scores[ids], kind="stable")]
