"""The list of fusions, and the configuration group `gca`. Costs no JAX, as configurations read it.

A new fusion is one class in one file, a subclass of `fusion.Fusion`, and its line in `FUSIONS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

# `gca.fusion` -> where its class is. Imported by `fusion.make` when a network needs it.
FUSIONS = {"gca": "oa_jax.nn.gca.GatedCrossAttention"}
# Field of the group `gca` -> the words that it may hold.
CHOICES = {
    "fusion": tuple(FUSIONS),
    "kv": ("merged", "other"),
    "gate_input": ("update", "source"),
    "gate_act": ("sigmoid", "tanh"),
    "gate_inner": ("relu", "gelu", "linear"),
    "part": ("full", "parallel", "orthogonal"),
    "part_of": ("update", "gated"),
}


@dataclasses.dataclass(frozen=True)
class GCAConfig:
    """The group `gca`: where a fusion stands, what it looks at, and the fields of its class.

    A fusion gets the fields that its class has under the same name; a field that no other fusion
    has is made configurable by a line here. The defaults are those that the paper's figures and
    parameter counts support where its text leaves a choice (arXiv 2510.09435).
    """

    fusion: str = "gca"  # an entry of `FUSIONS`
    positions: tuple[int, ...] = ()  # of the backbone's places, ascending; () is the baseline
    kv: str = "merged"  # merged (Y = X_{A+B}) | other (Y = the other domain's stream)
    heads: int = 0  # 0: as many as the backbone
    gate_input: str = "update"  # the gate sees update ([X; X']) | source ([X; Y at the same time])
    gate_act: str = "sigmoid"  # sigmoid | tanh
    gate_inner: str = "relu"  # relu | gelu | linear
    gate_hidden: int = 4  # width of the gate's hidden layer, in multiples of D
    layer_norm: bool = True
    # full | parallel | orthogonal: the part along X, or across it. Or a function, see `gca`.
    part: str | Callable = "full"
    part_of: str = "update"  # `part` and the penalty act on update (X') | gated (α ⊙ X')
    key_mask: bool = True  # padded keys are invisible
    causal: bool = True  # keys later than the query are invisible
