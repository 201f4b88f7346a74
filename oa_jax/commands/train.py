"""`python -m oa_jax train --config=FILE.py:ARGS --workdir=DIR`: train, or go on, or say done."""

from __future__ import annotations

from absl import flags

from oa_jax.commands import cli, report
from oa_jax.runs.run import run

flags.DEFINE_string("workdir", None, "Folder of the run: empty starts it, a begun one goes on.")
flags.DEFINE_bool("extend", False, "Let a run go on to more seeds or epochs than it had.")
cli.define_config()
cli.define_distributed()


def main(_):
    workdir = cli.given("workdir", "a folder for the run")
    summary = run(cli.config_value(), workdir, cli.say, extend=flags.FLAGS.extend)
    return report.conclude([report.described(summary, workdir)])


def start() -> None:
    cli.run(main, resumes=True)
