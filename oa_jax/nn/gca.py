"""Gated cross-attention (GCA), arXiv 2510.09435.

X'' = LN(X + α([X; X']) ⊙ X') with X' = MHA(X, Y, Y).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.fusion import Fusion, Taken
from oa_jax.nn.layers import MultiHeadAttention

GATE_ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": jnp.tanh}
INNER_ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "linear": lambda h: h}


class GatedCrossAttention(Fusion):
    """One GCA module. Its fields are explained in `known.GCAConfig`; `width` is that of the gate's
    hidden layer, in place of `gate_hidden`."""

    gate: str = "vector"
    gate_input: str = "update"
    gate_act: str = "sigmoid"
    gate_inner: str = "relu"
    gate_hidden: int = 4

    def take(self, query, source, view):
        attention = MultiHeadAttention(self.heads, self.initial, name="attention")
        return Taken(*attention(query, source, view.allowed_BxTxS))

    def alpha(self, x: jax.Array, update: jax.Array, y_aligned: jax.Array) -> jax.Array:
        """α = act(W2 inner(W1 [X; other] + b1) + b2): (P, D), each number for as many units."""
        width = x.shape[-1]
        numbers = {"none": 0, "scalar": 1, "head": self.heads, "vector": width}[self.gate]
        if not numbers:
            return jnp.ones_like(x)
        other = update if self.gate_input == "update" else y_aligned
        hidden = self.dense(self.width or self.gate_hidden * width, "gate_in")(
            jnp.concatenate([x, other], -1)
        )
        hidden = INNER_ACTIVATIONS[self.gate_inner](hidden)
        gate = GATE_ACTIVATIONS[self.gate_act](self.dense(numbers, "gate_out")(hidden))
        return gate if numbers == width else jnp.repeat(gate, width // numbers, -1)
