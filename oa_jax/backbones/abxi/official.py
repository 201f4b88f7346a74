"""Official ABXI weights (PyTorch state dict names) to and from our parameters."""

from oa_jax.backbones import official as common
from oa_jax.backbones.abxi.fields import Model
from oa_jax.backbones.official import Names, Weights


def _table() -> Names:
    names = {"ei.weight": (("items",), 0), "ep.weight": (("positions",), 0)}
    names |= common.attention("mha.mha", "attention")
    ffns = {"ffn": "ffn", "proj_i": "project_invariant"}
    ffns |= {f"proj_{d.lower()}": f"project_{d}" for d in "AB"}
    for theirs, ours in ffns.items():
        for fc, layer in {"fc_1": "up", "fc_2": "gate", "fc_3": "down"}.items():
            names[f"{theirs}.{fc}.weight"] = ((ours, layer, "kernel"), 2)
    loras = {f"dlora_{s.lower()}": f"lora_domain_{s}" for s in ("x", "A", "B")}
    loras |= {f"ilora_{d.lower()}": f"lora_invariant_{d}" for d in "AB"}
    for theirs, ours in loras.items():
        for matrix in "AB":
            names[f"{theirs}.mat_{matrix}"] = ((ours, matrix.lower()), 0)
    norms = {"mha.norm_mha": "norm_attention"}
    norms |= {f"norm_sa_{s.lower()}": f"norm_ffn_{s}" for s in ("x", "A", "B")}
    norms |= {f"norm_i2{d.lower()}": f"norm_invariant_{d}" for d in "AB"}
    norms |= {f"norm_{d.lower()}2{d.lower()}": f"norm_own_{d}" for d in "AB"}
    for theirs, ours in norms.items():
        names |= common.both_parts(theirs, ours)
    return names


NAMES = _table()


def from_official(weights: Weights, source: str = "weights") -> dict:
    """Official state dict -> our parameter tree (float32, numpy).

    The causal mask that a state dict may carry is a buffer and is left out. Raises UserError
    naming a missing or unknown entry.
    """
    kept = {name: value for name, value in weights.items() if "mask" not in name}
    common.check_names(kept, set(NAMES), "official ABXI", source)
    return common.to_tree(kept, NAMES)


def to_official(params: dict) -> Weights:
    """Our parameter tree (or gradients of it) -> arrays under the official names and layout."""
    return common.from_tree(params, NAMES)


def sizes_of(weights: Weights, heads: int) -> Model:
    """Model sizes read off the arrays' shapes (heads cannot be)."""
    return Model(
        d_embed=weights["ei.weight"].shape[1],
        heads=heads,
        d_ffn=weights["ffn.fc_1.weight"].shape[0],
        rank_domain=weights["dlora_x.mat_A"].shape[1],
        rank_invariant=weights["ilora_a.mat_A"].shape[1],
        length=weights["ep.weight"].shape[0] - 1,
    )
