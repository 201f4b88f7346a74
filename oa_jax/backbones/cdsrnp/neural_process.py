"""A neural process over sets of users: pair encoder, permutation-invariant mean, Gaussian, KL.

Forms of TaNP and NF-NPCDR (arXiv 2604.25732). The context (support) set
gives the prior, context and query together the posterior, by the same network.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from oa_jax.nn.layers import XAVIER_NORMAL, Dense, linear_bias


class Gaussian(NamedTuple):
    """Independent normals: mean and standard deviation, both (…, Z)."""

    mean: jax.Array
    sd: jax.Array

    def draw(self, key: jax.Array, shared: bool = False) -> jax.Array:
        """One reparameterised draw; shared: of all that stand before the last axis together."""
        shape = self.mean.shape[-1:] if shared else self.mean.shape
        return self.mean + self.sd * jax.random.normal(key, shape)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths):
            h = linear(nn.relu(h) if i else h, width, f"layer_{i}")
        return h


class LatentHead(nn.Module):
    """r -> N(μ, σ²) with σ in (0.1, 1): r' = ReLU(W r + b), σ = 0.1 + 0.9 sigmoid(W_σ r' + b_σ)."""

    width: int

    @nn.compact
    def __call__(self, r: jax.Array) -> Gaussian:
        r = nn.relu(linear(r, r.shape[-1], "hidden"))
        spread = nn.sigmoid(linear(r, self.width, "sd"))
        return Gaussian(linear(r, self.width, "mean"), 0.1 + 0.9 * spread)


def linear(h: jax.Array, width: int, name: str) -> jax.Array:
    """`h` through a linear layer, its weights Xavier-normal and its bias as PyTorch draws it."""
    bias = linear_bias(h.shape[-1])
    return Dense(width, kernel_init=XAVIER_NORMAL, bias_init=bias, name=name)(h)


class Sums(NamedTuple):
    """Of G sets of users: total of their representations (G, D), and numbers (G,)."""

    total: jax.Array
    count: jax.Array

    @property
    def mean(self) -> jax.Array:
        """(G, D); 0 for an empty set."""
        return self.total / jnp.maximum(self.count, 1.0)[:, None]


def sums(r_NxPxD: jax.Array, chosen_GxN: jax.Array) -> Sums:
    """Each user is the mean of its P pairs; each set counts the users that `chosen` marks."""
    weight = chosen_GxN.astype(r_NxPxD.dtype)
    return Sums(weight @ r_NxPxD.mean(1), weight.sum(1))


def kl_divergence(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q ‖ p), summed over the last axis: (…,)."""
    ratio = (q.sd**2 + (q.mean - p.mean) ** 2) / (2 * p.sd**2)
    return jnp.sum(jnp.log(p.sd / q.sd) + ratio - 0.5, -1)
