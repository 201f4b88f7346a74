"""The list of fusions, and the configuration group `gca`. Costs no JAX, as configurations read it.

A new fusion is one class, a subclass of `fusion.Fusion`, named by its module or by a line in
`FUSIONS`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from oa_jax.fields import field, flag, one_of, real, whole

# `gca.fusion` -> where its class is. Imported by `fusion.make` when a network needs it.
FUSIONS = {
    "gca": "oa_jax.nn.gca.GatedCrossAttention",
    "add": "oa_jax.nn.fusions.Add",
    "concat_mlp": "oa_jax.nn.fusions.ConcatMLP",
    "film": "oa_jax.nn.fusions.FiLM",
    "bilinear": "oa_jax.nn.fusions.Bilinear",
    "cross_attention": "oa_jax.nn.fusions.CrossAttention",
    "flamingo": "oa_jax.nn.fusions.Flamingo",
    "head_gate": "oa_jax.nn.fusions.HeadGate",
    "orthogonal_residual": "oa_jax.nn.fusions.OrthogonalResidual",
    "exclusive": "oa_jax.nn.fusions.Exclusive",
    "co_attention": "oa_jax.nn.fusions.CoAttention",
    "bottleneck": "oa_jax.nn.fusions.Bottleneck",
    "experts": "oa_jax.nn.fusions.Experts",
}


def _is_fusion(value):
    return isinstance(value, str) and (
        value in FUSIONS or all(map(str.isidentifier, value.split("."))) and "." in value
    )


def _are_experts(value):
    return (
        isinstance(value, tuple)
        and len(set(value)) == len(value) > 0
        and all(name in FUSIONS and name != "experts" for name in value)
    )


@dataclasses.dataclass(frozen=True)
class GCAConfig:
    """The group `gca`: where a fusion stands, what it looks at, and the fields of its class.

    A fusion gets the fields that its class has under the same name; a field that no other fusion
    has is made configurable by a line here. The defaults are those that the paper's figures and
    parameter counts support where its text leaves a choice (arXiv 2510.09435).
    """

    fusion: str = field(
        "gca",
        _is_fusion,
        f"one of {', '.join(FUSIONS)}, or MODULE.CLASS of your own",
        "the module; gca is the paper's; or a subclass of oa.Fusion, as MODULE.CLASS",
    )
    positions: tuple[int, ...] = field(
        (), lambda v: isinstance(v, tuple), "places", "places with a module; () is the baseline"
    )
    source: str = one_of(
        "merged",
        "Y: the merged stream, the other domain's, the token's own stream (no other domain at "
        "all), or another user's merged stream",
        *("merged", "other", "self", "shuffled"),
    )
    window: str = one_of(
        "own",
        "the newest of Y: up to the token, or to before its target; ABXI's is always `now`",
        *("own", "now"),
    )
    own_item: str = one_of(
        "visible", "whether a token sees itself in the merged stream", "visible", "hidden"
    )
    heads: int = whole(0, "attention heads; 0: as many as the backbone", 0)
    width: int = whole(0, "inner width; 0: the fusion's own, `inspect` says what matches GCA", 0)
    gate: str = one_of(
        "vector",
        "size of α: no gate, one number, one for each D/heads units, D",
        *("none", "scalar", "head", "vector"),
    )
    gate_input: str = one_of(
        "update",
        "the gate sees [X; X'] or [X; Y of the token's own time, 0 where `own_item` hides it]",
        *("update", "source"),
    )
    gate_act: str = one_of("sigmoid", "activation of the gate", "sigmoid", "tanh")
    gate_inner: str = one_of("relu", "activation of its hidden layer", "relu", "gelu", "linear")
    gate_hidden: int = whole(4, "width of the gate's hidden layer, in multiples of D")
    residual: bool = flag(True, "X is added to the update")
    layer_norm: bool = flag(True, "LayerNorm after the residual")
    # In a program, also a function, for interventions on trained models: see `fusion.Fusion`.
    part: str | Callable = one_of(
        "full",
        "part of the update that is added: full; parallel or orthogonal to X; split: both, scaled",
        *("full", "parallel", "orthogonal", "split"),
    )
    part_of: str = one_of(
        "update", "`part` and the penalty act on X' or on α ⊙ X'", "update", "gated"
    )
    pool: str = one_of(
        "newest", "the one Y of a token, for fusions that do not attend", "newest", "mean"
    )
    latents: int = whole(4, "learnt tokens of fusion=bottleneck")
    experts: tuple[str, ...] = field(
        ("cross_attention", "film", "add"),
        _are_experts,
        "different names of other fusions",
        "what fusion=experts mixes",
    )
    key_mask: bool = flag(True, "padding is masked out of the keys")
    causal: bool = flag(True, "keys later than the query are masked")
    ortho_weight: float = real(0.0, "λ of the penalty λ mean cos²(X, X'), of any sign", -math.inf)


# Fields that one fusion has alone: without it they change nothing.
OF_ONE = {"latents": "bottleneck", "experts": "experts", "gate": "gca", "gate_input": "gca"}
OF_ONE |= {"gate_act": "gca", "gate_inner": "gca", "gate_hidden": "gca"}


def changed(gca: Mapping[str, Any]) -> list[str]:
    """`field=value` of what is not as by default and has an effect, but for the fusion, its places
    and λ. `window` is among them even in ABXI, where it has none."""
    gca, out = vars(GCAConfig()) | dict(gca), []
    fusions = {gca["fusion"], *(gca["experts"] if gca["fusion"] == "experts" else ())}
    for one in dataclasses.fields(GCAConfig):
        name, value = one.name, gca[one.name]
        value = tuple(value) if isinstance(value, list) else value  # of config.json
        left_out = name in ("fusion", "positions", "ortho_weight")
        left_out |= name in OF_ONE and OF_ONE[name] not in fusions
        left_out |= name == "own_item" and gca["source"] in ("other", "shuffled")
        if value != one.default and not left_out:
            out.append(f"{name}={'+'.join(value) if isinstance(value, tuple) else value}")
    return out
