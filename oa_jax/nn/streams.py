"""What LLM4CDSR and CDSRNP share: SASRec blocks over three streams, domain ones without gaps.

Stream x holds everything, A and B one domain each; a domain's token carries the column of stream x
at which it stands.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from oa_jax.nn.layers import (
    XAVIER_NORMAL,
    Dropout,
    Init,
    LayerNorm,
    MultiHeadAttention,
    Stream,
    linear_bias,
)

PLACES = (0, 1, 2)  # after embedding, after block 1, after block 2
DOMAINS = ("A", "B")
STREAMS = ("x", *DOMAINS)
N_BLOCKS = 2
INIT = Init(XAVIER_NORMAL, XAVIER_NORMAL)
EPSILON = 1e-8


class Block(nn.Module):
    """One SASRec block of the official code: keys and values from X, residuals from LN(X)."""

    heads: int

    @nn.compact
    def __call__(self, stream: Stream, allowed_BxTxS, rate, last_only=False):
        width = stream.h_PxD.shape[-1]
        source, query = stream, stream.last() if last_only else stream
        query = query.map(LayerNorm(EPSILON, name="norm_attention"))
        allowed = allowed_BxTxS[:, -1:] if last_only else allowed_BxTxS
        attention = MultiHeadAttention(self.heads, INIT, name="attention")
        update = attention(query, source, allowed, rate)
        norm = LayerNorm(EPSILON, name="norm_ffn")
        dense = {
            name: nn.Dense(
                width, kernel_init=XAVIER_NORMAL, bias_init=linear_bias(width), name=f"ffn_{name}"
            )
            for name in ("in", "out")
        }

        def feed_forward(h):
            h = norm(h + update)
            inner = nn.relu(Dropout()(dense["in"](h), rate))
            return h + Dropout()(dense["out"](inner), rate)

        return query.map(feed_forward)


def cross(modules: dict, kv: str, streams: dict, times: dict):
    """GCA at one place: each domain's stream looks at the merged or at the other domain's.

    modules: {domain: GatedCrossAttention}; times: {stream: columns of stream x}.
    -> (streams, {domain: Probe})
    """
    out, probes = dict(streams), {}
    for domain, other in zip(DOMAINS, reversed(DOMAINS), strict=True):
        source = "x" if kv == "merged" else other
        out[domain], probes[domain] = modules[domain](
            streams[domain], streams[source], times[domain], times[source]
        )
    return out, probes


def times_of(batch) -> dict:
    """Columns of the merged sequence at which the tokens of each stream stand; -1 at padding."""
    shape = batch["seq"].shape
    axis = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    return {"x": axis, "A": batch["time_A"], "B": batch["time_B"]}
