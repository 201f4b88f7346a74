"""Fusions that do not attend: each token has one Y (`gca.pool`), the newest that it may use or the
mean of all. And a mixture of fusions of any kind.

`width` is that of the hidden layer, D if it is 0.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.fusion import Fusion, fields_for, kind_of


class Add(Fusion):
    """X' = MLP(Y), so that X'' is a sum: the simplest that has parameters, of no paper."""

    def update(self, query, source, view):
        return self.mlp(self.one_y(query, source, view), query.h_PxD.shape[-1]), {}

    def mlp(self, h: jax.Array, width: int) -> jax.Array:
        """W2 relu(W1 h + b1) + b2."""
        hidden = self.dense(self.width or h.shape[-1], "in")(h)
        return self.dense(width, "out")(nn.relu(hidden))


class ConcatMLP(Add):
    """X' = MLP([X; Y]), as neural collaborative filtering joins its two (He et al., arXiv
    1708.05031)."""

    def update(self, query, source, view):
        x = query.h_PxD
        return self.mlp(jnp.concatenate([x, self.one_y(query, source, view)], -1), x.shape[-1]), {}


class FiLM(Add):
    """X' = γ(Y) ⊙ X + β(Y): feature-wise modulation (Perez et al., arXiv 1709.07871)."""

    def update(self, query, source, view):
        x = query.h_PxD
        film = self.mlp(self.one_y(query, source, view), 2 * x.shape[-1])
        scale, shift = jnp.split(film, 2, -1)
        return scale * x + shift, {}


class Bilinear(Fusion):
    """X' = W (tanh(U X) ⊙ tanh(V Y)): low-rank bilinear pooling (Kim et al., arXiv 1610.04325)."""

    def update(self, query, source, view):
        x, y = query.h_PxD, self.one_y(query, source, view)
        rank = self.width or x.shape[-1]
        both = jnp.tanh(self.dense(rank, "of_x")(x)) * jnp.tanh(self.dense(rank, "of_y")(y))
        return self.dense(x.shape[-1], "out")(both), {}


class Experts(Fusion):
    """X' = Σ w_i α_i ⊙ X'_i, w = softmax(W [X; Y]): a mixture whose experts are other fusions, all
    of them for every token (Jacobs et al. 1991; sparsely: Shazeer et al., arXiv 1701.06538).

    `width` is that of each expert. Their mean weights are statistics, `weight_NAME`.
    """

    experts: tuple[str, ...] = ()
    latents: int = 4

    def update(self, query, source, view):
        both = jnp.concatenate([query.h_PxD, self.one_y(query, source, view)], -1)
        weight_PxN = nn.softmax(self.dense(len(self.experts), "router")(both), -1)
        bare = {"residual": False, "layer_norm": False, "part": "full"}
        total, more = jnp.zeros_like(query.h_PxD), {}
        for name, weight_P in zip(self.experts, weight_PxN.T, strict=True):
            kind = kind_of(name)
            expert = kind(**fields_for(kind, self) | bare, name=name)
            total += weight_P[:, None] * expert.fused(query, source, view)[0].h_PxD
            more[f"weight_{name}"] = weight_P
        return total, more
