"""Fusions that do not attend: each token has one Y (`gca.pool`), the newest that it may use or the
mean of all. And a mixture of fusions of any kind.

`width` is that of the hidden layer, D if it is 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.fusion import Fusion, Taken, fields_for, kind_of


class Add(Fusion):
    """X' = MLP(Y), so that X'' is a sum: the simplest that has parameters, of no paper."""

    attends = False

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        return Taken(self.mlp(y, y.shape[-1]), weights)

    def mlp(self, h: jax.Array, width: int) -> jax.Array:
        """W2 relu(W1 h + b1) + b2."""
        hidden = self.dense(self.width or h.shape[-1], "in")(h)
        return self.dense(width, "out")(nn.relu(hidden))


class ConcatMLP(Add):
    """X' = MLP([X; Y]), as neural collaborative filtering joins its two (He et al., arXiv
    1708.05031)."""

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        both = jnp.concatenate([query.h_PxD, y], -1)
        return Taken(self.mlp(both, y.shape[-1]), weights)


class FiLM(Add):
    """X' = γ(Y) ⊙ X + β(Y): feature-wise modulation (Perez et al., arXiv 1709.07871)."""

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        scale, shift = jnp.split(self.mlp(y, 2 * y.shape[-1]), 2, -1)
        return Taken(scale * query.h_PxD + shift, weights)


class Bilinear(Fusion):
    """X' = W (tanh(U X) ⊙ tanh(V Y)): low-rank bilinear pooling (Kim et al., arXiv 1610.04325)."""

    attends = False

    def take(self, query, source, view):
        x, (y, weights) = query.h_PxD, self.one_y(query, source, view)
        rank = self.width or x.shape[-1]
        both = jnp.tanh(self.dense(rank, "of_x")(x)) * jnp.tanh(self.dense(rank, "of_y")(y))
        return Taken(self.dense(x.shape[-1], "out")(both), weights)


class Experts(Fusion):
    """X' = Σ w_i α_i ⊙ X'_i, w = softmax(W [X; Y]): a mixture whose experts are other fusions, all
    of them for every token (Jacobs et al. 1991; sparsely: Shazeer et al., arXiv 1701.06538).

    `width` is that of each expert. Their mean weights are statistics, `weight_NAME`.
    """

    experts: tuple[str, ...] = ()
    # Fields of single experts.
    latents: int = 4
    gate: str = "vector"
    gate_input: str = "update"
    gate_act: str = "sigmoid"
    gate_inner: str = "relu"
    gate_hidden: int = 4

    def take(self, query, source, view):
        both = jnp.concatenate([query.h_PxD, self.one_y(query, source, view)[0]], -1)
        weight_PxN = nn.softmax(self.dense(len(self.experts), "router")(both), -1)
        bare = {"residual": False, "layer_norm": False, "part": "full"}
        total, looks, more = 0.0, 0.0, {}
        for name, weight_P in zip(self.experts, weight_PxN.T, strict=True):
            kind = kind_of(name)
            expert = kind(**fields_for(kind, self) | bare, name=name)
            added, probe = expert.fused(query, source, view)
            total += weight_P[:, None] * added.h_PxD
            looks += weight_P[:, None] * probe.weights_PxS
            more[f"weight_{name}"] = weight_P
        return Taken(total, looks, more)
