"""LLM4CDSR with gated cross-attention.

    python -m oa_jax train --workdir=DIR \\
        --config=configs/llm4cdsr.py:pair=llmcdsr_food_kitchen,gca=early,size=small

Arguments (defaults: configs/README.md):
  pair      cloth_sport | elec_phone | llmcdsr_food_kitchen | synthetic, or any set by its name
  gca       none | early | stack, or places such as 0-2
  size      official | small (for a machine without accelerator)
  runlocal  the same pair and five seeds, so small that it ends in under a minute on two cores
`--config.protocol=corrected` turns off the quirks of the official code
(oa_jax/backbones/README.md).

The official code selects by overall NDCG@10 among its own 101 candidates (Q2), and stops after 20
epochs without a strict improvement. It uses Adam with a constant rate.
Exact numbers of parameters: 2,544,768 with user profiles of width 1536, 3,495,296 with 2048; each
place of GCA adds 527,104.
"""

from oa_jax import presets

# The weights of the two contrastive terms differ by pair; the rest is the field's default.
PAIRS = {
    "cloth_sport": {},
    "elec_phone": {"model.alpha": 1.0, "model.beta": 1.0},
    # 384 columns are the width of its title embeddings.
    "llmcdsr_food_kitchen": {"data.global_width": 384},
    "synthetic": {},
}
# A quarter of the width, windows of 30, a larger rate, users of both domains: minutes on two cores.
# Nineteen of twenty of these users have at most 29 training events.
SMALL = {
    "model.d_embed": 32,
    "model.length": 30,
    "data.users": "overlap",
    "data.global_width": 128,
    "train.batch_size": 256,
    "train.learning_rate": 3e-3,
    "train.stop_patience": 5,
}
# The built-in pair is small, and so are the model and the batch.
SYNTHETIC = {
    "model.d_embed": 16,
    "model.length": 38,
    "model.dropout": 0.2,
    "data.users": "all",
    "data.global_width": 32,
    "train.batch_size": 64,
    "train.learning_rate": 3e-3,
    "train.max_epochs": 24,
    "train.stop_patience": 5,
    "train.probe_users": 256,
    "train.checkpoint_every": 8,
}
# An epoch or two of a narrow model, to see that everything works.
RUNLOCAL = {
    "model.d_embed": 8,
    "model.length": 20,
    "data.global_width": 16,
    "train.max_epochs": 2,
    "train.stop_patience": 1,
    "train.probe_users": 128,
    "train.quick_compile": True,
}
# On a CPU, with most of the time in compiling and ranking.
RUNLOCAL_REAL = {
    "data.users": "overlap",
    "train.max_epochs": 1,
    "train.batch_size": 256,
    "seed_axis": "map",
}
DEFAULTS = {"pair": "synthetic", "gca": "none"} | presets.SIZES


def get_config(arg=None):
    args = presets.arguments(arg, DEFAULTS)
    layers = presets.layers(args, PAIRS, SMALL, SYNTHETIC, RUNLOCAL, RUNLOCAL_REAL)
    return presets.configure("llm4cdsr", *layers)
