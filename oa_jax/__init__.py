"""oa-jax: cross-domain sequential recommenders with gated cross-attention, in JAX and Flax."""

__version__ = "0.1.0"
