"""The list of fusions, and the configuration group `gca`. Costs no JAX, as configurations read it.

A new fusion is one class in one file, a subclass of `fusion.Fusion`, and its line in `FUSIONS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from oa_jax.fields import field, flag, one_of, real, whole

# `gca.fusion` -> where its class is. Imported by `fusion.make` when a network needs it.
FUSIONS = {"gca": "oa_jax.nn.gca.GatedCrossAttention"}


@dataclasses.dataclass(frozen=True)
class GCAConfig:
    """The group `gca`: where a fusion stands, what it looks at, and the fields of its class.

    A fusion gets the fields that its class has under the same name; a field that no other fusion
    has is made configurable by a line here. The defaults are those that the paper's figures and
    parameter counts support where its text leaves a choice (arXiv 2510.09435).
    """

    fusion: str = one_of("gca", "which module", *FUSIONS)
    positions: tuple[int, ...] = field(
        (), lambda v: isinstance(v, tuple), "places", "where it stands; () is the baseline"
    )
    kv: str = one_of("merged", "Y: the merged stream, or the other domain's", "merged", "other")
    heads: int = whole(0, "attention heads; 0: as many as the backbone", 0)
    gate_input: str = one_of("update", "the gate sees [X; X'] or [X; Y]", "update", "source")
    gate_act: str = one_of("sigmoid", "of the gate", "sigmoid", "tanh")
    gate_inner: str = one_of("relu", "of the gate's hidden layer", "relu", "gelu", "linear")
    gate_hidden: int = whole(4, "width of the gate's hidden layer, in multiples of D")
    layer_norm: bool = flag(True, "LayerNorm after the residual")
    # In a program, also a function, for interventions on trained models: see `gca`.
    part: str | Callable = one_of(
        "full", "what is used: all, what lies along X, or across", "full", "parallel", "orthogonal"
    )
    part_of: str = one_of(
        "update", "`part` and the penalty act on X' or on α ⊙ X'", "update", "gated"
    )
    key_mask: bool = flag(True, "padded keys are invisible")
    causal: bool = flag(True, "keys later than the query are invisible")
    ortho_weight: float = real(0.0, "λ of the penalty λ mean cos²(X, X')")
