"""Official LLM4CDSR weights (PyTorch state dict names) to and from our parameters and tables."""

from __future__ import annotations

import numpy as np

from oa_jax.backbones.llm4cdsr.model import N_BLOCKS, STREAMS, LLM4CDSRConfig, Tables
from oa_jax.errors import UserError

# Official name -> field of Tables: frozen inputs, not parameters.
TABLES = {
    "item_emb_llm.weight": "items",
    "item_embA.weight": "local_A",
    "item_embB.weight": "local_B",
    "user_emb_llm.weight": "users",
}


def _table() -> dict[str, tuple[tuple[str, ...], int]]:
    """Official name -> (our path, axes to transpose: 0 none, 2 linear, 3 width-1 convolution)."""
    names = {}
    for theirs, ours in (("adapter", "adapter"), ("user_adapter", "user_adapter")):
        for i, step in enumerate(("in", "out")):
            names[f"{theirs}.{i}.weight"] = ((ours, f"w_{step}"), 2)
            names[f"{theirs}.{i}.bias"] = ((ours, f"b_{step}"), 0)
    for stream in STREAMS:
        suffix = "" if stream == "x" else stream
        names[f"pos_emb{suffix}.weight"] = ((f"positions_{stream}",), 0)
        root = f"backbone{suffix}"
        for i in range(N_BLOCKS):
            names |= _block(root, i, f"block_{stream}_{i}")
        for part, leaf in (("weight", "scale"), ("bias", "bias")):
            names[f"{root}.last_layernorm.{part}"] = ((f"norm_{stream}", "norm", leaf), 0)
    return names


def _block(root, i, ours):
    attention, forward = f"{root}.attention_layers.{i}", f"{root}.forward_layers.{i}"
    names = {
        f"{attention}.in_proj_weight": ((ours, "attention", "w_in"), 2),
        f"{attention}.in_proj_bias": ((ours, "attention", "b_in"), 0),
        f"{attention}.out_proj.weight": ((ours, "attention", "out", "kernel"), 2),
        f"{attention}.out_proj.bias": ((ours, "attention", "out", "bias"), 0),
    }
    for norm, name in (
        ("attention_layernorms", "norm_attention"),
        ("forward_layernorms", "norm_ffn"),
    ):
        for part, leaf in (("weight", "scale"), ("bias", "bias")):
            names[f"{root}.{norm}.{i}.{part}"] = ((ours, name, "norm", leaf), 0)
    for conv, name in (("conv1", "ffn_in"), ("conv2", "ffn_out")):
        names[f"{forward}.{conv}.weight"] = ((ours, name, "kernel"), 3)
        names[f"{forward}.{conv}.bias"] = ((ours, name, "bias"), 0)
    return names


NAMES = _table()


def from_official(weights: dict[str, np.ndarray], source: str = "weights") -> tuple[dict, Tables]:
    """Official state dict -> (our parameter tree, frozen tables), float32 numpy.

    Raises UserError naming a missing or unknown entry.
    """
    expected = {*NAMES, *TABLES}
    missing, unknown = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or unknown:
        what = f"missing {missing[0]}" if missing else f"unknown {unknown[0]}"
        raise UserError(f"{source}: {what}: expected the {len(expected)} arrays of LLM4CDSR")
    net: dict = {}
    for name, (path, axes) in NAMES.items():
        node = net
        for part in path[:-1]:
            node = node.setdefault(part, {})
        value = np.asarray(weights[name], np.float32)
        value = value[..., 0] if axes == 3 else value
        node[path[-1]] = value.T if axes else value
    tables = {ours: np.asarray(weights[theirs], np.float32) for theirs, ours in TABLES.items()}
    return {"net": net}, Tables(**tables)


def to_official(params: dict) -> dict[str, np.ndarray]:
    """Our parameter tree (or gradients of it) -> arrays under the official names and layout."""
    weights = {}
    for name, (path, axes) in NAMES.items():
        value = params["net"]
        for part in path:
            value = value[part]
        value = np.asarray(value).T if axes else np.asarray(value)
        weights[name] = value[..., None] if axes == 3 else value
    return weights


def sizes_of(weights: dict[str, np.ndarray], n_items: tuple[int, int], heads: int):
    """Model sizes read off the arrays' shapes (heads and the domains' items cannot be)."""
    rows, width = weights["pos_emb.weight"].shape
    return LLM4CDSRConfig(tuple(n_items), d_embed=width, heads=heads, length=rows - 1)
