"""Official ABXI weights (PyTorch state dict names) to and from our parameters."""

from __future__ import annotations

import numpy as np

from oa_jax.backbones.abxi.model import ABXIConfig
from oa_jax.errors import UserError

_FFN = {"fc_1": "up", "fc_2": "gate", "fc_3": "down"}


def _table() -> dict[str, tuple[tuple[str, ...], bool]]:
    """Official name -> (our path, transposed). Torch stores linear weights as (out, in)."""
    names = {
        "ei.weight": (("items",), False),
        "ep.weight": (("positions",), False),
        "mha.mha.in_proj_weight": (("attention", "w_in"), True),
        "mha.mha.in_proj_bias": (("attention", "b_in"), False),
        "mha.mha.out_proj.weight": (("attention", "out", "kernel"), True),
        "mha.mha.out_proj.bias": (("attention", "out", "bias"), False),
    }
    ffns = {"ffn": "ffn", "proj_i": "project_invariant"}
    ffns |= {f"proj_{d.lower()}": f"project_{d}" for d in "AB"}
    for theirs, ours in ffns.items():
        for fc, layer in _FFN.items():
            names[f"{theirs}.{fc}.weight"] = ((ours, layer, "kernel"), True)
    loras = {f"dlora_{s.lower()}": f"lora_domain_{s}" for s in ("x", "A", "B")}
    loras |= {f"ilora_{d.lower()}": f"lora_invariant_{d}" for d in "AB"}
    for theirs, ours in loras.items():
        for matrix in "AB":
            names[f"{theirs}.mat_{matrix}"] = ((ours, matrix.lower()), False)
    norms = {"mha.norm_mha": "norm_attention"}
    norms |= {f"norm_sa_{s.lower()}": f"norm_ffn_{s}" for s in ("x", "A", "B")}
    norms |= {f"norm_i2{d.lower()}": f"norm_invariant_{d}" for d in "AB"}
    norms |= {f"norm_{d.lower()}2{d.lower()}": f"norm_own_{d}" for d in "AB"}
    for theirs, ours in norms.items():
        for part, leaf in (("weight", "scale"), ("bias", "bias")):
            names[f"{theirs}.{part}"] = ((ours, "norm", leaf), False)
    return names


NAMES = _table()


def from_official(weights: dict[str, np.ndarray], source: str = "weights") -> dict:
    """Official state dict -> our parameter tree (float32, numpy).

    The causal mask that a state dict may carry is a buffer and is left out. Raises UserError
    naming a missing or unknown entry.
    """
    missing = sorted(set(NAMES) - set(weights))
    unknown = sorted(k for k in set(weights) - set(NAMES) if "mask" not in k)
    if missing or unknown:
        what = f"missing {missing[0]}" if missing else f"unknown {unknown[0]}"
        raise UserError(f"{source}: {what}: expected the {len(NAMES)} arrays of official ABXI")
    params: dict = {}
    for name, (path, transposed) in NAMES.items():
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        value = np.asarray(weights[name], np.float32)
        node[path[-1]] = value.T if transposed else value
    return params


def to_official(params: dict) -> dict[str, np.ndarray]:
    """Our parameter tree (or gradients of it) -> arrays under the official names and layout."""
    weights = {}
    for name, (path, transposed) in NAMES.items():
        value = params
        for part in path:
            value = value[part]
        weights[name] = np.asarray(value).T if transposed else np.asarray(value)
    return weights


def sizes_of(weights: dict[str, np.ndarray], n_items: tuple[int, int], heads: int) -> ABXIConfig:
    """Model sizes read off the arrays' shapes (heads and the domains' items cannot be)."""
    return ABXIConfig(
        n_items=tuple(n_items),
        d_embed=weights["ei.weight"].shape[1],
        heads=heads,
        d_ffn=weights["ffn.fc_1.weight"].shape[0],
        rank_domain=weights["dlora_x.mat_A"].shape[1],
        rank_invariant=weights["ilora_a.mat_A"].shape[1],
        length=weights["ep.weight"].shape[0] - 1,
    )
