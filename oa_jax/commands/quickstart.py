"""`python -m oa_jax quickstart`: baseline and GCA_early on the embedded synthetic pair, five seeds.

What launch/quickstart.sh runs. A second call finds the runs finished and prints the table again.
"""

from __future__ import annotations

from absl import flags

from oa_jax import files, presets
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
        config = presets.load(f"configs/abxi.py:pair=synthetic,gca={gca}")
        config.data.world.redundancy = redundancy
        workdir = files.local(flags.FLAGS.workdir, "--workdir") / name
        summaries.append(report.described(run(config, workdir, cli.say), workdir))
    report.show(summaries)
    cli.say("\nnull: |cos| of independent random directions of this width; init: before training")
    return max(report.status(summary, cli.say) for summary in summaries)


def start() -> None:
    cli.run(main, resumes=True)
