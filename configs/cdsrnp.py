"""CDSRNP with gated cross-attention: a reconstruction (oa_jax/backbones/README.md).

    python -m oa_jax train --workdir=DIR \\
        --config=configs/cdsrnp.py:pair=llmcdsr_food_kitchen,gca=early,size=small

Arguments (defaults: configs/README.md):
  pair      elec_phone_amid | cloth_sport_amid | mybank_loan_fund | mybank_loan_account |
            llmcdsr_food_kitchen | synthetic, or any set by its name
  gca       none | early | stack, or places such as 0-2
  np        true | false (without the neural process)
  size      official | small (for a machine without accelerator)
  runlocal  the same pair and five seeds, so small that it ends in under a minute on two cores

No official size is known: "official" is our reading of the paper (d = 128, L = 50, batch 256).
"""

from oa_jax import presets

# Sequences made for one target, negatives from the test file's items.
AMID = {"model.targets": "last", "evaluate.test_items": True}
PAIRS = {
    "elec_phone_amid": AMID,
    "cloth_sport_amid": AMID,
    "mybank_loan_fund": AMID,
    "mybank_loan_account": AMID,
    "llmcdsr_food_kitchen": {"data.split": "leave_one_out"},  # instead of its own
    "synthetic": {},
}
# For two cores: a quarter of the width, larger batches, streams of 10 and 20, which hold nine of
# ten histories.
SMALL = {
    "model.d_embed": 32,
    "model.length": 10,
    "model.merged_length": 20,
    "model.heads": 2,
    "model.support": 64,
    "model.decoder_widths": (32, 16),
    "train.batch_size": 512,
    "train.learning_rate": 5e-3,
    "train.max_epochs": 60,
    "evaluate.block_items": 128,  # what five seeds hold of a block stays near the cache
}
# At most that many evaluated users of a kind: both domains, A only, B only.
SMALL_EVALUATION = {"evaluate.users_per_kind": 2000}
# The embedded pair, with users of one domain; model and batch are as small as it.
SYNTHETIC = {
    "data.world.single": (300, 300),
    "model.d_embed": 16,
    "model.length": 20,
    "model.merged_length": 40,
    "model.heads": 2,
    "model.support": 32,
    "model.eval_support": 256,
    "model.decoder_widths": (32, 16),
    "train.batch_size": 64,
    "train.learning_rate": 3e-3,
    "train.max_epochs": 24,
    "train.probe_users": 256,
    "train.checkpoint_every": 8,
    "evaluate.n_negatives": 99,
    "evaluate.block_users": 256,
}
# An epoch or two of a narrow model, to see that everything works.
RUNLOCAL = {
    "model.d_embed": 8,
    "model.length": 10,
    "model.merged_length": 20,
    "model.heads": 2,
    "model.eval_support": 128,
    "model.decoder_widths": (8, 8),
    "train.max_epochs": 2,
    "train.probe_users": 128,
    "train.quick_compile": True,
}
RUNLOCAL_REAL = {
    "data.users": "overlap",
    "train.max_epochs": 1,
    "evaluate.users_per_kind": 50,
    "evaluate.block_items": 128,
}
DEFAULTS = {"pair": "synthetic", "gca": "none", "np": "true"} | presets.SIZES


def get_config(arg=None):
    args = presets.arguments(arg, DEFAULTS)
    own = {"model.neural_process": presets.is_true("np", args["np"])}
    small = SMALL if PAIRS.get(args["pair"]) is AMID else SMALL | SMALL_EVALUATION
    layers = presets.layers(args, PAIRS, small, SYNTHETIC, RUNLOCAL, RUNLOCAL_REAL)
    return presets.configure("cdsrnp", own, *layers)
