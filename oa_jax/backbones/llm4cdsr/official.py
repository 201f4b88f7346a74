"""Official LLM4CDSR weights (PyTorch state dict names) to and from our parameters and tables.

The number of blocks is read off the names, so weights of any depth are taken.
"""

import re

import numpy as np

from oa_jax.backbones import official as common
from oa_jax.backbones.llm4cdsr.fields import Model
from oa_jax.backbones.llm4cdsr.model import Tables
from oa_jax.backbones.official import Names, Weights
from oa_jax.nn.streams import STREAMS

# Official name -> field of Tables: frozen inputs, not parameters.
TABLES = {
    "item_emb_llm.weight": "items",
    "item_embA.weight": "local_A",
    "item_embB.weight": "local_B",
    "user_emb_llm.weight": "users",
}


def names_of(blocks: int) -> Names:
    """Official names of the parameters of a model with so many blocks in each stream."""
    names: Names = {}
    for adapter in ("adapter", "user_adapter"):
        for i, step in enumerate(("in", "out")):
            names[f"{adapter}.{i}.weight"] = ((adapter, f"w_{step}"), 2)
            names[f"{adapter}.{i}.bias"] = ((adapter, f"b_{step}"), 0)
    for stream in STREAMS:
        suffix = "" if stream == "x" else stream
        root = f"backbone{suffix}"
        names[f"pos_emb{suffix}.weight"] = ((f"positions_{stream}",), 0)
        for i in range(blocks):
            ours = f"block_{stream}_{i}"
            names |= common.attention(f"{root}.attention_layers.{i}", ours, "attention")
            names |= common.both_parts(f"{root}.attention_layernorms.{i}", ours, "norm_attention")
            names |= common.both_parts(f"{root}.forward_layernorms.{i}", ours, "norm_ffn")
            for conv, name in (("conv1", "ffn_in"), ("conv2", "ffn_out")):
                theirs = f"{root}.forward_layers.{i}.{conv}"
                names[f"{theirs}.weight"] = ((ours, name, "kernel"), 3)
                names[f"{theirs}.bias"] = ((ours, name, "bias"), 0)
        names |= common.both_parts(f"{root}.last_layernorm", f"norm_{stream}")
    return names


def blocks_of(weights: Weights) -> int:
    """Blocks that the names speak of, at least 1."""
    numbers = (re.match(r"backbone[AB]?\.\w+\.(\d+)\.", name) for name in weights)
    # Their number, not the largest: a stray number is then an unknown name.
    return max(len({match[1] for match in numbers if match}), 1)


def from_official(weights: Weights, source: str = "weights") -> tuple[dict, Tables]:
    """Official state dict -> (our parameter tree, frozen tables), float32 numpy.

    Raises UserError naming a missing or unknown entry.
    """
    names = names_of(blocks_of(weights))
    common.check_names(weights, {*names, *TABLES}, "LLM4CDSR", source)
    tables = {ours: np.asarray(weights[theirs], np.float32) for theirs, ours in TABLES.items()}
    return {"net": common.to_tree(weights, names)}, Tables(**tables)


def to_official(params: dict) -> Weights:
    """Our parameter tree (or gradients of it) -> arrays under the official names and layout."""
    net = params["net"]
    return common.from_tree(net, names_of(sum(name.startswith("block_x_") for name in net)))


def sizes_of(weights: Weights, heads: int) -> Model:
    """Model sizes read off names and shapes (heads cannot be)."""
    rows, width = weights["pos_emb.weight"].shape
    return Model(d_embed=width, heads=heads, length=rows - 1, blocks=blocks_of(weights))
