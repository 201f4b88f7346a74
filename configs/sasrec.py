"""SASRec (arXiv 1808.09781) on one domain or both, also with gated cross-attention.

    python -m oa_jax train --config=configs/sasrec.py:pair=beauty_elec,stream=apart --workdir=DIR

Arguments (defaults: configs/README.md):
  pair      synthetic, or any set by its name
  stream    merged | apart | A | B (oa_jax/backbones/README.md)
  gca       none | early | stack, or places such as 0-2; needs stream=merged
  size      official | small (for a machine without accelerator)
  runlocal  the same pair and five seeds, so small that it ends in under a minute on two cores

"official" has the paper's sizes for its Amazon sets (d = 50, L = 50, two blocks, batch 128); no set
of the paper has two domains. Exact numbers of parameters for n items: 50 n + 33,700 with one
stream; 50 n + 67,350 with two (stream=apart); with fusions 50 n + 100,900, and 81,100 more for each
place of GCA. Untied tables add 50 n + 50.
"""

from oa_jax import presets

# For two cores: shorter streams, larger batches and rates, an earlier end.
SMALL = {
    "model.length": 20,
    "train.batch_size": 256,
    "train.learning_rate": 3e-3,
    "train.max_epochs": 60,
    "train.stop_patience": 4,
}
# The built-in pair is small, and so are the model and the batch.
SYNTHETIC = {
    "model.d_embed": 32,
    "model.length": 38,
    "train.batch_size": 64,
    "train.learning_rate": 3e-3,
    "train.max_epochs": 24,
    "train.stop_patience": 5,
    "train.probe_users": 256,
    "train.checkpoint_every": 8,
    "evaluate.n_negatives": 99,
    "evaluate.block_users": 128,
}
# An epoch or two of a narrow model, to see that everything works.
RUNLOCAL = {
    "model.d_embed": 16,
    "model.length": 20,
    "train.max_epochs": 2,
    "train.probe_users": 128,
    "train.quick_compile": True,
}
RUNLOCAL_REAL = {"train.batch_size": 512, "train.max_epochs": 1, "evaluate.users_per_kind": 500}
DEFAULTS = {"pair": "synthetic", "stream": "merged", "gca": "none"} | presets.SIZES


def get_config(arg=None):
    args = presets.arguments(arg, DEFAULTS)
    own = {"model.stream": presets.choice("stream", args["stream"], ("merged", "apart", "A", "B"))}
    layers = presets.layers(args, {}, SMALL, SYNTHETIC, RUNLOCAL, RUNLOCAL_REAL)
    return presets.configure("sasrec", own, *layers)
