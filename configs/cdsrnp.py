"""CDSRNP with gated cross-attention: a reconstruction (see README, "CDSRNP").

    python -m oa_jax train --workdir=DIR \\
        --config=configs/cdsrnp.py:pair=llmcdsr_food_kitchen,gca=early,size=small

Arguments: `pair` elec_phone_amid | cloth_sport_amid | llmcdsr_food_kitchen | synthetic; `gca` none
| early | stack or places such as 0-2; `np` true | false, without the neural process; `size`
official | small, the latter for a machine without accelerator; `runlocal`, the same pair and five
seeds in a size that ends in under a minute on two cores.

There is no official size: "official" is that of the specs (d = 128, L = 50, batch 256).
"""

from oa_jax import config as config_lib

PAIRS = ("elec_phone_amid", "cloth_sport_amid", "llmcdsr_food_kitchen", "synthetic")
DEFAULTS = {
    "pair": "synthetic",
    "gca": "none",
    "np": "true",
    "size": "official",
    "runlocal": "false",
}


def get_config(arg=None):
    args = config_lib.arguments(arg, DEFAULTS)
    pair = config_lib.choice("pair", args["pair"], PAIRS)
    config = config_lib.base("cdsrnp")
    config.protocol = "corrected"
    config.data.name = pair
    config.gca.positions = config_lib.positions(args["gca"])
    config.model = {
        "d_embed": 128,
        "heads": 4,
        "blocks": 2,
        "length": 50,
        "merged_length": 100,
        "dropout": 0.2,
        "neural_process": config_lib.choice("np", args["np"], ("true", "false")) == "true",
        "d_latent": 0,  # half of d_embed
        "support": 128,
        "eval_support": 2048,
        "exclude_query": True,
        "targets": "each_domain",
        "pair_negative": True,
        "latents": "per_direction",
        "score_state": "last",
        "np_state": "mean",
        "interest": "film",
        "decoder_widths": (128, 32),
        "film_from_one": True,
        "kl_weight": 0.01,
        "kl_warmup": 10,
        "eval_latent": "mean",
    }
    training(config)
    if pair.endswith("_amid"):
        amid(config)
    if config_lib.choice("size", args["size"], ("official", "small")) == "small":
        shrink(config)
    if pair == "synthetic":
        synthetic(config)
    if config_lib.choice("runlocal", args["runlocal"], ("true", "false")) == "true":
        runlocal(config, pair)
    return config


def training(config):
    """Adam at a constant rate, selected by the sum of both domains' NDCG@10 (specs cdsrnp §13)."""
    config.train.update(
        {
            "batch_size": 256,
            "n_negatives": 1,
            "learning_rate": 5e-4,
            "weight_decay": 0.0,
            "max_epochs": 50,
            "warmup_epochs": 0,
            "plateau_factor": 1.0,
            "stop_patience": 4,  # the fifth epoch without improvement ends the run
            "selection": "ndcg@10_sum",
            "strict": True,
        }
    )
    # Every candidate attends to the history: blocks of (users, items, steps).
    config.evaluate.update({"block_users": 64, "block_items": 1024, "test_items": False})


def amid(config):
    """Sequences made for one target, a split of their own, negatives from the test file's items."""
    config.data.split = "published"
    config.model.targets = "last"
    config.evaluate.test_items = True


def shrink(config):
    """For two cores: a quarter of the width, larger batches, streams of 10 and 20, which hold nine
    of ten histories; at most 2,000 evaluated users of a kind (both domains, A only, B only).
    """
    config.model.update({"d_embed": 32, "length": 10, "merged_length": 20, "heads": 2})
    config.model.update({"support": 64, "decoder_widths": (32, 16)})
    config.train.update({"batch_size": 512, "learning_rate": 5e-3, "max_epochs": 60})
    config.evaluate.block_items = 128  # what five seeds hold of a block stays near the cache
    if not config.data.name.endswith("_amid"):
        config.evaluate.users_per_kind = 2000


def synthetic(config):
    """The embedded pair, with users of one domain; model and batch are as small as it."""
    config.data.world.single = (300, 300)
    config.model.update({"d_embed": 16, "length": 20, "merged_length": 40, "heads": 2})
    config.model.update({"support": 32, "eval_support": 256, "decoder_widths": (32, 16)})
    config.train.update(
        {
            "batch_size": 64,
            "learning_rate": 3e-3,
            "max_epochs": 24,
            "probe_users": 256,
            "checkpoint_every": 8,
            "compaction": False,  # compiling again would cost more than it saves
        }
    )
    config.evaluate.update({"n_negatives": 99, "block_users": 256})


def runlocal(config, pair):
    """An epoch or two of a narrow model, to see that everything works."""
    config.model.update({"d_embed": 8, "length": 10, "merged_length": 20, "heads": 2})
    config.model.update({"eval_support": 128, "decoder_widths": (8, 8)})
    config.train.update({"max_epochs": 2, "probe_users": 128, "quick_compile": True})
    if pair != "synthetic":
        config.data.users = "overlap"
        config.train.max_epochs = 1
        config.evaluate.update({"users_per_kind": 50, "block_items": 128})
