"""`python -m oa_jax train --config=FILE.py:ARGS --workdir=DIR`: train, or go on, or say done."""

from __future__ import annotations

from absl import flags

from oa_jax import processes
from oa_jax.commands import cli, report
from oa_jax.errors import UserError
from oa_jax.runs.run import run

flags.DEFINE_string("workdir", None, "Folder of the run: empty starts it, a begun one goes on.")
flags.DEFINE_bool("extend", False, "Let a run go on to more seeds or epochs than it had.")
cli.define_config()
cli.define_distributed()


def main(_):
    if not flags.FLAGS.workdir:
        raise UserError("--workdir: missing: expected a folder for the run")
    given = flags.FLAGS
    summary = run(cli.config_value(), given.workdir, cli.say, extend=given.extend)
    if processes.is_first():
        report.show([report.described(summary, flags.FLAGS.workdir)])
    return report.status(summary, cli.say)


def start() -> None:
    cli.run(main, resumes=True)
