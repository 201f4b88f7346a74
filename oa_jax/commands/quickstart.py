"""`python -m oa_jax quickstart`: baseline and GCA_early on the embedded synthetic pair, five seeds.

What launch/quickstart.sh runs. A second call finds the runs finished and prints the table again.
"""

from __future__ import annotations

import importlib.util
import pathlib

from absl import flags

from oa_jax import files
from oa_jax.commands import cli, report
from oa_jax.errors import UserError
from oa_jax.events.world import World, generate, topic_oracles
from oa_jax.runs.run import run

flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the two runs.")
flags.DEFINE_float("redundancy", 0.5, "The synthetic world's knob, 0 (complementary) to 1.")

VARIANTS = {"baseline": "none", "gca_early": "early"}


def main(_):
    redundancy = flags.FLAGS.redundancy
    if not flags.FLAGS.workdir:
        raise UserError("--workdir: empty: expected a folder for the two runs")
    world = World(redundancy=redundancy)
    oracle = topic_oracles(world, generate(world)).summary()
    cli.say(
        f"synthetic world, redundancy {redundancy:g}: knowing B is worth {oracle['gain']:.3f} nats "
        "about the topic of A's next item"
    )
    summaries = []
    for name, gca in VARIANTS.items():
        config = experiment_file().get_config(f"pair=synthetic,gca={gca}")
        config.data.world.redundancy = redundancy
        workdir = files.local(flags.FLAGS.workdir, "--workdir") / name
        summaries.append(report.described(run(config, workdir, cli.say), workdir))
    report.show(summaries)
    cli.say("\nnull: |cos| of independent random directions of this width; init: before training")
    return max(report.status(summary, cli.say) for summary in summaries)


def experiment_file():
    """The module configs/abxi.py of the checkout that this package runs from."""
    path = pathlib.Path(__file__).parent.parent / "configs" / "abxi.py"
    if not path.exists():
        raise UserError(f"{path}: no such file: expected to run from a checkout of oa-jax")
    spec = importlib.util.spec_from_file_location("abxi", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start() -> None:
    cli.run(main, resumes=True)
