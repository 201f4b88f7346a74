"""`python -m oa_jax.evaluate --workdir=DIR`: ranks and metrics again, from the checkpoint."""

from __future__ import annotations

import os

import numpy as np
from absl import flags

from oa_jax import cli, report
from oa_jax import experiment as experiment_lib
from oa_jax.errors import UserError
from oa_jax.train.checkpoint import Checkpoints
from oa_jax.train.environment import environment
from oa_jax.train.run import check_same_data, conclude, use_compilation_cache
from oa_jax.train.workdir import Workdir

flags.DEFINE_string("workdir", None, "Folder of a run that has at least one checkpoint.")
flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where config.json says.")


def main(_):
    path = flags.FLAGS.workdir
    if not path:
        raise UserError("--workdir: missing: expected the folder of a run")
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise UserError(f"--workdir={path}: no config.json in it: expected the folder of a run")
    with Workdir(path) as workdir:
        config = workdir.read_json("config.json")
        if flags.FLAGS.data_dir:
            config["data"]["dir"] = flags.FLAGS.data_dir
        use_compilation_cache()
        experiment = experiment_lib.build(config)
        check_same_data(workdir, environment(experiment))
        epoch, states, seconds = newest(experiment, workdir)
        before = stored_ranks(workdir)
        cli.say(f"best parameters of the checkpoint after epoch {epoch}")
        summary = conclude(experiment, workdir, states, seconds)
    if before is not None:
        same = all(np.array_equal(before[k], v) for k, v in stored_ranks(workdir).items())
        cli.say("ranks equal the stored ones" if same else "ranks differ from the stored ones")
    report.show([summary], cli.console)
    return report.status(summary, cli.say)


def newest(experiment, workdir):
    """(epoch, states, seconds) of the newest checkpoint."""
    abstract = experiment.engine.abstract(experiment.seeds, experiment.hparams())
    with Checkpoints(workdir.checkpoints) as checkpoints:
        found = checkpoints.restore_newest(abstract)
    if found is None:
        raise UserError(f"{workdir.checkpoints}: no checkpoint: expected a run past its first save")
    return found


def stored_ranks(workdir):
    path = workdir.path / "ranks.npz"
    return dict(np.load(path)) if path.exists() else None


if __name__ == "__main__":
    cli.run(main)
