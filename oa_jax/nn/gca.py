"""Gated cross-attention (GCA), arXiv 2510.09435.

X'' = LN(X + α([X; X']) ⊙ X') with X' = MHA(X, Y, Y).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.fusion import Fusion, Probe
from oa_jax.nn.layers import LayerNorm, MultiHeadAttention, Stream

GATE_ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": jnp.tanh}
INNER_ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "linear": lambda h: h}


def parallel_part(update: jax.Array, x: jax.Array) -> jax.Array:
    """Projection of `update` on X, per token (last axis): (X'·X / X·X) X; 0 where X is 0."""
    norm2 = jnp.sum(x * x, -1, keepdims=True)
    scale = jnp.sum(update * x, -1, keepdims=True) / jnp.where(norm2 > 0, norm2, 1.0)
    return scale * x


PARTS = {
    "full": lambda update, x: update,
    "parallel": parallel_part,
    "orthogonal": lambda update, x: update - parallel_part(update, x),
}


class GatedCrossAttention(Fusion):
    """One GCA module. Its fields are explained in `known.GCAConfig`.

    part: a name of `PARTS`, or a function (X', query stream, name of the module) -> what is used
    in its place, for interventions on trained models. With `part_of="update"` it acts on X', and
    the gate sees what is left; with "gated" the gate sees X', and α ⊙ X' is what is replaced: with
    `gate_act="tanh"` only this does not depend on the arbitrary signs of X' (see `angles`).
    """

    gate_input: str = "update"
    gate_act: str = "sigmoid"
    gate_inner: str = "relu"
    gate_hidden: int = 4
    layer_norm: bool = True
    part: str | Callable = "full"
    part_of: str = "update"
    key_mask: bool = True
    causal: bool = True

    def __call__(
        self, query: Stream, source: Stream, q_time_BxT: jax.Array, s_time_BxS: jax.Array
    ) -> tuple[Stream, Probe]:
        """-> (Stream X'', Probe); see `Fusion`."""
        return self._fuse(query, source, q_time_BxT, s_time_BxS, self.causal)

    @nn.compact
    def _fuse(self, query, source, q_time_BxT, s_time_BxS, causal):
        x = query.h_PxD
        source_real_Bx1xS = source.packing.unpack(source.real_P)[:, None, :]
        in_window_BxTx1 = (q_time_BxT >= 0)[:, :, None]
        allowed = jnp.ones((*q_time_BxT.shape, s_time_BxS.shape[1]), bool)
        if causal:
            # A query from before the window (time < 0) has no place among the keys.
            allowed &= (s_time_BxS[:, None, :] <= q_time_BxT[:, :, None]) & in_window_BxTx1
        if self.key_mask:
            allowed &= source_real_Bx1xS
        attention = MultiHeadAttention(self.heads, self.initial, name="attention")
        raw, weights_PxS = attention.attend(query, source, allowed)
        raw = raw * query.real_P[:, None]
        same_time = (s_time_BxS[:, None, :] == q_time_BxT[:, :, None]) & in_window_BxTx1
        aligned = same_time & source_real_Bx1xS

        def mean_of_y(chosen_BxTxS):
            weight = chosen_BxTxS / jnp.maximum(chosen_BxTxS.sum(-1, keepdims=True), 1)
            y_BxSxD = source.packing.unpack(source.h_PxD)
            return query.packing.pack(jnp.einsum("bts,bsd->btd", weight, y_BxSxD))

        y_pooled, y_aligned = mean_of_y(allowed), mean_of_y(aligned)
        used = self._part(raw, query) if self.part_of == "update" else raw
        gate = self._gate(x, used if self.gate_input == "update" else y_aligned)
        gated = gate * used
        if self.part_of == "gated":
            gated = self._part(gated, query)
        norm = LayerNorm(name="norm") if self.layer_norm else lambda h: h
        has_key, has_aligned = (
            query.packing.pack(chosen.any(-1)) & query.real_P for chosen in (allowed, aligned)
        )
        masks = query.real_P, has_key, has_aligned
        probe = Probe(x, raw, y_pooled, y_aligned, gate, *masks, weights_PxS)
        return query.map(lambda h: norm(h + gated)), probe

    def _part(self, update, query):
        if callable(self.part):
            return self.part(update, query, self.name)
        return PARTS[self.part](update, query.h_PxD)

    def _gate(self, x, other):
        """α = act(W2 inner(W1 [X; other] + b1) + b2): (P, D)."""
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, kernel_init=self.initial.weight)
        hidden = dense(self.gate_hidden * width, name="gate_in")(jnp.concatenate([x, other], -1))
        hidden = INNER_ACTIVATIONS[self.gate_inner](hidden)
        return GATE_ACTIVATIONS[self.gate_act](dense(width, name="gate_out")(hidden))
