"""`python -m oa_jax evaluate --workdir=DIR`: ranks and metrics again, from the checkpoint.

Of a run that has not ended the table is shown, and nothing is written: it can go on.
"""

import contextlib
import tempfile

import numpy as np
from absl import flags

from oa_jax import files, processes
from oa_jax.commands import cli, report
from oa_jax.configuration import MESH_EXPECTED
from oa_jax.engine import mesh
from oa_jax.engine.compilation import use_compilation_cache
from oa_jax.errors import UserError
from oa_jax.runs.run import RANKING, check_same_data, conclude
from oa_jax.runs.stored import experiment_of, newest_states
from oa_jax.runs.workdir import Workdir

flags.DEFINE_string("workdir", None, "Folder of a run that has at least one checkpoint.")
flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where config.json says.")
flags.DEFINE_string("mesh", "", f"The devices of here: {MESH_EXPECTED}.")
cli.define_distributed()


def main(_):
    path = files.local(cli.given("workdir", "the folder of a run"), "--workdir")
    if not (path / "config.json").is_file():
        raise UserError(f"--workdir={path}: no config.json in it: expected the folder of a run")
    mesh.Layout.of(flags.FLAGS.mesh, flag="--mesh")
    with Workdir(path) as workdir, contextlib.ExitStack() as cleanup:
        use_compilation_cache(cli.say)
        experiment = experiment_of(path, data_dir=flags.FLAGS.data_dir, mesh=flags.FLAGS.mesh)
        check_same_data(workdir, experiment.identity())
        epoch, states, seconds, stopped = newest_states(path, experiment, cli.say)
        cli.say(f"best parameters of the checkpoint after epoch {epoch}")
        target, before = workdir, None
        if processes.fetch(states.done).all():
            before = stored_ranks(workdir)
        else:  # summary.json would end the run
            cli.say("the run has not ended: its folder is left as it is")
            target = Workdir(cleanup.enter_context(tempfile.TemporaryDirectory()))
        cli.say(RANKING)
        summary = conclude(experiment, target, states, seconds, stopped=stopped)
        if before is not None:
            after = stored_ranks(workdir)
            names = before.keys() | after.keys()
            same = all(np.array_equal(before.get(name), after.get(name)) for name in names)
            cli.say(f"ranks {'equal' if same else 'differ from'} the stored ones")
    return report.conclude([report.described(summary, path)])


def stored_ranks(workdir: Workdir) -> dict[str, np.ndarray] | None:
    """Arrays of ranks.npz, None if there is none that can be read."""
    path = workdir.path / "ranks.npz"
    try:
        return files.read_npz(path) if path.exists() else None
    except UserError as error:
        cli.say(f"{error}: written anew")
        return None
