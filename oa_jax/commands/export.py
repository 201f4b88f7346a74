"""`python -m oa_jax export --workdir=DIR --out=FOLDER`: a model that others can load.

The best parameters of a seed as safetensors, the scorer as StableHLO for CPU, CUDA and TPU, the
items as Parquet, the configuration and a model card. `oa.load_export(FOLDER)` reads it here; the
card has the lines that read it elsewhere, without this program.
"""

from absl import flags

from oa_jax.commands import cli
from oa_jax.serving.exported import export

flags.DEFINE_string("workdir", None, "Folder of a run with a checkpoint.")
flags.DEFINE_string("out", None, "A new folder.")
flags.DEFINE_integer("seed", None, "Whose parameters; by default the first that did not diverge.")
flags.DEFINE_string("license", "unknown", "Of the model, for its card.")
flags.DEFINE_string("data_license", "unknown", "Of the data, for the card.")
cli.define_data_dir()


def main(_):
    values = flags.FLAGS
    workdir = cli.given("workdir", "the folder of a run")
    out = cli.given("out", "a new folder")
    about = values.seed, values.license, values.data_license, values.data_dir
    folder = export(workdir, out, *about, say=cli.say)
    size = sum(file.stat().st_size for file in folder.iterdir())
    cli.say(f"{folder}: {size / 1e6:.1f} MB; {folder / 'README.md'} says how to load it")
