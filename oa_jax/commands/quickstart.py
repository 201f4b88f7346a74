"""`python -m oa_jax quickstart`: baseline and GCA_early on the embedded synthetic pair, five seeds.

What launch/quickstart.sh runs. A second call finds the runs finished and prints the table again.
With a second CPU, and no TPU, the baseline trains in a process of its own meanwhile.
"""

from absl import flags

from oa_jax import files, presets
from oa_jax.commands import cli, report
from oa_jax.events.world import World, generate, topic_oracles
from oa_jax.runs.beside import beside, share_machine
from oa_jax.runs.run import run
from oa_jax.runs.workdir import Workdir

flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the two runs.")
flags.DEFINE_float("redundancy", 0.5, "The synthetic world's knob, 0 (complementary) to 1.")

CONFIG = "configs/abxi.py:pair=synthetic,gca="


def main(_):
    redundancy = flags.FLAGS.redundancy
    folder = files.local(cli.given("workdir", "a folder for the two runs"), "--workdir")
    world = World(redundancy=redundancy)
    oracle = topic_oracles(world, generate(world)).summary()
    cli.say(
        f"synthetic world, redundancy {redundancy:g}: knowing B is worth {oracle['gain']:.3f} nats "
        "about the topic of A's next item"
    )

    def trained(gca, path):
        config = presets.load(CONFIG + gca)
        config.data.world.redundancy = redundancy
        return report.described(run(config, path, cli.say), path)

    baseline, others = folder / "baseline", {}
    if not Workdir(baseline).is_finished and share_machine(2) > 1:
        said = folder / "baseline.log"
        words = f"--config={CONFIG}none", f"--config.data.world.redundancy={redundancy}"
        others = {said: ["train", *words, f"--workdir={baseline}"]}
        cli.say(f"{baseline} trains meanwhile: what it says is in {said}")
    with beside(others, cli.say):
        early = trained("early", folder / "gca_early")
    # By now it is finished. If it could not be, it goes on here and says why.
    status = report.conclude([trained("none", baseline), early])
    cli.say("\nnull: |cos| of independent random directions of this width; init: before training")
    return status
