"""`python -m oa_jax evaluate --workdir=DIR`: ranks and metrics again, from the checkpoint.

Of a run that has not ended the table is shown, and nothing is written: it can go on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile

import numpy as np
from absl import flags

from oa_jax import experiment as experiment_lib
from oa_jax import files, processes
from oa_jax.commands import cli, report
from oa_jax.config import MESH_EXPECTED
from oa_jax.engine import mesh
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.runs.checkpoint import Checkpoints
from oa_jax.runs.environment import environment
from oa_jax.runs.run import RANKING, check_same_data, conclude, stored_config
from oa_jax.runs.workdir import Workdir

flags.DEFINE_string("workdir", None, "Folder of a run that has at least one checkpoint.")
flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where config.json says.")
flags.DEFINE_string("mesh", "", f"The devices of here: {MESH_EXPECTED}.")
cli.define_distributed()


def main(_):
    path = flags.FLAGS.workdir
    if not path:
        raise UserError("--workdir: missing: expected the folder of a run")
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise UserError(f"--workdir={path}: no config.json in it: expected the folder of a run")
    with Workdir(path) as workdir, contextlib.ExitStack() as cleanup:
        config = stored_config(workdir)
        if flags.FLAGS.data_dir:
            config = config.replace(data={"dir": flags.FLAGS.data_dir})
        config = config.replace(mesh=given_mesh())
        use_compilation_cache(cli.say)
        experiment = experiment_lib.build(config)
        check_same_data(workdir, environment(experiment))
        epoch, states, seconds = newest(experiment, workdir)
        cli.say(f"best parameters of the checkpoint after epoch {epoch}")
        target, before = workdir, None
        if processes.fetch(states.done).all():
            before = stored_ranks(workdir)
        else:  # summary.json would end the run
            cli.say("the run has not ended: its folder is left as it is")
            target = Workdir(cleanup.enter_context(tempfile.TemporaryDirectory()))
        cli.say(RANKING)
        summary = conclude(experiment, target, states, seconds)
        if before is not None:
            cli.say(f"ranks {compare(before, stored_ranks(workdir))} the stored ones")
    if processes.is_first():
        report.show([report.described(summary, path)])
    return report.status(summary, cli.say)


def given_mesh() -> str:
    """--mesh. Raises UserError for what is none, or needs more devices than there are."""
    try:
        mesh.Layout.of(flags.FLAGS.mesh, flag="--mesh")
    except ValueError:
        raise UserError(f"--mesh={flags.FLAGS.mesh}: expected {MESH_EXPECTED}") from None
    return flags.FLAGS.mesh


def newest(experiment, workdir):
    """(epoch, states, seconds) of the newest checkpoint."""
    found = None
    if workdir.checkpoints.is_dir():
        abstract = experiment.engine.abstract(experiment.seeds, experiment.hparams())
        with Checkpoints(workdir.checkpoints, say=cli.say) as checkpoints:
            found = checkpoints.restore_newest(abstract)
    if found is None:
        raise UserError(f"{workdir.checkpoints}: no checkpoint: expected a run past its first save")
    return found


def stored_ranks(workdir: Workdir) -> dict[str, np.ndarray] | None:
    """Arrays of ranks.npz, None if there is none that can be read."""
    path = workdir.path / "ranks.npz"
    try:
        return files.read_npz(path) if path.exists() else None
    except UserError as error:
        cli.say(f"{error}: written anew")
        return None


def compare(before, after) -> str:
    same = before.keys() == after.keys()
    same = same and all(np.array_equal(before[name], after[name]) for name in before)
    return "equal" if same else "differ from"


def start() -> None:
    cli.run(main)
