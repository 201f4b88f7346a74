"""Weights under the names of an official PyTorch code, to and from our parameter trees."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from oa_jax.errors import UserError

# Official name -> (path in our tree, axes to transpose: 0 none, 2 linear, 3 width-1 convolution).
# Torch stores linear weights as (out, in), and convolutions as (out, in, width).
Names = dict[str, tuple[tuple[str, ...], int]]
Weights = dict[str, np.ndarray]


def both_parts(theirs: str, *ours: str) -> Names:
    """Weight and bias of a LayerNorm."""
    leaves = {"weight": "scale", "bias": "bias"}
    return {f"{theirs}.{part}": ((*ours, "norm", leaf), 0) for part, leaf in leaves.items()}


def attention(theirs: str, *ours: str) -> Names:
    """The four arrays of `torch.nn.MultiheadAttention`."""
    return {
        f"{theirs}.in_proj_weight": ((*ours, "w_in"), 2),
        f"{theirs}.in_proj_bias": ((*ours, "b_in"), 0),
        f"{theirs}.out_proj.weight": ((*ours, "out", "kernel"), 2),
        f"{theirs}.out_proj.bias": ((*ours, "out", "bias"), 0),
    }


def check_names(weights: Weights, expected: set[str], code: str, source: str) -> None:
    """Raise UserError naming a missing or unknown entry of `weights`."""
    missing, unknown = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or unknown:
        what = f"missing {missing[0]}" if missing else f"unknown {unknown[0]}"
        raise UserError(f"{source}: {what}: expected the {len(expected)} arrays of {code}")


def to_tree(weights: Weights, names: Names) -> dict:
    """Our parameter tree, float32 numpy, of arrays under official names."""
    flat = {}
    for name, (path, axes) in names.items():
        value = np.asarray(weights[name], np.float32)
        value = value[..., 0] if axes == 3 else value
        flat[path] = value.T if axes else value
    return unflatten_dict(flat)


def from_tree(tree: dict, names: Names) -> Weights:
    """Arrays under official names and in official layout, of our parameters or their gradients."""
    weights, flat = {}, flatten_dict(tree)
    for name, (path, axes) in names.items():
        value = np.asarray(flat[path]).T if axes else np.asarray(flat[path])
        weights[name] = value[..., None] if axes == 3 else value
    return weights
