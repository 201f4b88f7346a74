"""The metrics that training selects by, on the device: `ranking.metrics` has them on the host.

Of the ranks of validation users: rank (R,), real (R,) which of them count, domain (R,).
"""

import jax
import jax.numpy as jnp


def mrr_sum(rank: jax.Array, real: jax.Array, domain: jax.Array) -> jax.Array:
    """MRR of A plus MRR of B, as official ABXI selects."""
    return sum(_mean(1.0 / rank, real & (domain == d)) for d in (0, 1))


def ndcg10(rank: jax.Array, real: jax.Array, domain: jax.Array) -> jax.Array:
    """NDCG@10 of all users, whatever their domain, as official LLM4CDSR selects."""
    return _mean(jnp.where(rank <= 10, 1.0 / jnp.log2(rank + 1.0), 0.0), real)


def ndcg10_sum(rank: jax.Array, real: jax.Array, domain: jax.Array) -> jax.Array:
    """NDCG@10 of A plus NDCG@10 of B: our choice for CDSRNP."""
    return sum(ndcg10(rank, real & (domain == d), domain) for d in (0, 1))


SELECTION = {"mrr_sum": mrr_sum, "ndcg@10": ndcg10, "ndcg@10_sum": ndcg10_sum}


def _mean(values, chosen):
    return jnp.sum(values * chosen) / jnp.maximum(jnp.sum(chosen.astype(jnp.float32)), 1.0)
