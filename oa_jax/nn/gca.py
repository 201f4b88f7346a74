"""Gated cross-attention (GCA), arXiv 2510.09435: X'' = LN(X + α([X; X']) ⊙ X'), X' = MHA(X, Y, Y).

What the paper leaves open is a field of `GCAConfig`, with the reading that its figures and
parameter counts support as default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.layers import ABXI_INIT, Init, LayerNorm, MultiHeadAttention, Stream

GATE_ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": jnp.tanh}
INNER_ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "linear": lambda h: h}


@dataclasses.dataclass(frozen=True)
class GCAConfig:
    """Fields of the module; `positions` are the backbone's places, () is the baseline.

    part: a name of `UPDATES`, or a function (X', query stream, name of the module) -> what is
    used in place of X', by the gate as well. Functions are for interventions on trained models; a
    configuration file holds names.
    """

    positions: tuple[int, ...] = ()
    kv: str = "merged"  # merged (Y = X_{A+B}) | other (Y = the other domain's stream)
    gate_input: str = "update"  # update ([X; X']) | source ([X; Y at the same time])
    gate_act: str = "sigmoid"  # sigmoid | tanh
    gate_inner: str = "relu"  # relu | gelu | linear
    gate_hidden: int = 4  # width of the gate's hidden layer, in multiples of D
    layer_norm: bool = True
    heads: int = 0  # 0: as many as the backbone
    part: str | Callable = "full"  # full | parallel | orthogonal: what of X' is used
    key_mask: bool = True  # padded keys are invisible
    causal: bool = True  # keys later than the query are invisible


@flax.struct.dataclass
class Probe:
    """What one GCA module saw and did, at the query's slots. All (P, D) but `real_P` (P,).

    x: X.  update: X', raw: before the gate and before any projection.  y_pooled: mean of Y over
    the keys that the token may use.  y_aligned: Y at the token's own time.  gate: α.
    real_P: tokens that count; `has_key_P`: tokens with at least one allowed key;
    `has_aligned_P`: tokens with a Y token at their own time.
    """

    x: jax.Array
    update: jax.Array
    y_pooled: jax.Array
    y_aligned: jax.Array
    gate: jax.Array
    real_P: jax.Array
    has_key_P: jax.Array
    has_aligned_P: jax.Array


def parallel_part(update, x):
    """Projection of X' on X, per token: (X'·X / X·X) X; 0 where X is 0."""
    norm2 = jnp.sum(x * x, -1, keepdims=True)
    scale = jnp.sum(update * x, -1, keepdims=True) / jnp.where(norm2 > 0, norm2, 1.0)
    return scale * x


UPDATES = {
    "full": lambda update, x: update,
    "parallel": parallel_part,
    "orthogonal": lambda update, x: update - parallel_part(update, x),
}


class GatedCrossAttention(nn.Module):
    """One GCA module: one domain at one place. `initial`: as the backbone's own attention."""

    config: GCAConfig
    heads: int
    initial: Init = ABXI_INIT

    @nn.compact
    def __call__(self, query: Stream, source: Stream, q_time_BxT, s_time_BxS):
        """-> (Stream X'', Probe).

        Times are positions on the merged axis: a query may use keys that are not later than it.
        """
        cfg, x = self.config, query.h_PxD
        allowed = self._allowed(query, source, q_time_BxT, s_time_BxS)
        attention = MultiHeadAttention(self.heads, self.initial, name="attention")
        raw = attention(query, source, allowed) * query.real_P[:, None]
        update = self._used(raw, query)
        same_time = s_time_BxS[:, None, :] == q_time_BxT[:, :, None]
        same_time &= (q_time_BxT >= 0)[:, :, None]
        y_pooled, y_aligned, has_aligned = _views_of_y(query, source, allowed, same_time)
        gate = self._gate(x, update if cfg.gate_input == "update" else y_aligned)
        norm = LayerNorm(name="norm") if cfg.layer_norm else lambda h: h
        out = query.map(lambda h: norm(h + gate * update))
        has_key = query.packing.pack(allowed.any(-1)) & query.real_P
        return out, Probe(
            x, raw, y_pooled, y_aligned, gate, query.real_P, has_key, has_aligned & query.real_P
        )

    def _allowed(self, query, source, q_time_BxT, s_time_BxS):
        shape = (*q_time_BxT.shape, s_time_BxS.shape[1])
        allowed = jnp.ones(shape, bool)
        if self.config.causal:
            # A query from before the window (time < 0) has no place among the keys.
            allowed &= s_time_BxS[:, None, :] <= q_time_BxT[:, :, None]
            allowed &= (q_time_BxT >= 0)[:, :, None]
        if self.config.key_mask:
            allowed &= source.packing.unpack(source.real_P)[:, None, :]
        return allowed

    def _used(self, raw, query):
        chosen = self.config.part
        if callable(chosen):
            return chosen(raw, query, self.name)
        return UPDATES[chosen](raw, query.h_PxD)

    def _gate(self, x, other):
        cfg, width = self.config, x.shape[-1]
        dense = functools.partial(nn.Dense, kernel_init=self.initial.weight)
        hidden_width = cfg.gate_hidden * width
        hidden = dense(hidden_width, name="gate_in")(jnp.concatenate([x, other], -1))
        hidden = INNER_ACTIVATIONS[cfg.gate_inner](hidden)
        return GATE_ACTIVATIONS[cfg.gate_act](dense(width, name="gate_out")(hidden))


def _views_of_y(query, source, allowed_BxTxS, same_time_BxTxS):
    """Y pooled over the allowed keys, Y at the query's own time, and where the latter exists."""
    y_BxSxD = source.packing.unpack(source.h_PxD)

    def mean(chosen_BxTxS):
        weight = chosen_BxTxS / jnp.maximum(chosen_BxTxS.sum(-1, keepdims=True), 1)
        return query.packing.pack(jnp.einsum("bts,bsd->btd", weight, y_BxSxD))

    aligned_BxTxS = same_time_BxTxS & source.packing.unpack(source.real_P)[:, None, :]
    has_aligned = query.packing.pack(aligned_BxTxS.any(-1))
    return mean(allowed_BxTxS), mean(aligned_BxTxS), has_aligned
