"""Losses that the backbones share: sampled softmax without a (B, L, K, D) gather, pairwise and
contrastive terms, and the orthogonality penalty.

All forms of the softmax take packed positions and return (total, terms_P): the weighted sum of
-log softmax(target) over the target and its rivals, which is differentiable, and its terms, which
are for reading only. Rivals are K negatives of each position, of each row, of the whole batch, or
all items.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from oa_jax.nn import shards
from oa_jax.nn.gca import Probe
from oa_jax.nn.layers import Packing


def shared_negatives(table, h_PxD, weight_P, target_P, packing: Packing, negatives_BxK):
    """Negatives shared by all positions of a row: gathered once a row, scored as one product."""
    scores_BxLxK = shards.products(table, packing.unpack(h_PxD), negatives_BxK)
    positive_P = jnp.sum(h_PxD * shards.rows(table, target_P), -1)
    terms_P = weight_P * _nll(positive_P, packing.pack(scores_BxLxK))
    return jnp.sum(terms_P), jax.lax.stop_gradient(terms_P)


def batch_negatives(table, h_PxD, weight_P, target_P, negatives_K):
    """Negatives shared by the whole batch: one product (P, D) x (D, K)."""
    positive_P = jnp.sum(h_PxD * shards.rows(table, target_P), -1)
    terms_P = weight_P * _nll(positive_P, h_PxD @ shards.rows(table, negatives_K).T)
    return jnp.sum(terms_P), jax.lax.stop_gradient(terms_P)


# A CPU is fastest while the item vectors of a block, and their gradients, stay in its cache.
CPU_BLOCK_BYTES = 2**21


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def position_negatives(table, h_PxD, weight_P, target_P, negatives_PxK, block):
    """Negatives of each position's own, in blocks of at most `block` positions; on a CPU in blocks
    whose item vectors are at most `CPU_BLOCK_BYTES`.

    The gradient is formed in the forward pass, while a block's item vectors are at hand, so
    nothing of size (P, K, D) outlives its block and nothing is gathered twice.
    Differentiable in `table` and `h_PxD`; `weight_P` is a constant.
    """
    args = (table, h_PxD, weight_P, target_P, negatives_PxK)
    return _forward(*args, block, with_gradient=False)[0]


def _forward(table, h_PxD, weight_P, target_P, negatives_PxK, block, with_gradient=True):
    ids_Px1K = jnp.concatenate([target_P[:, None], negatives_PxK], 1)
    part = functools.partial(_in_blocks, block=block, with_gradient=with_gradient)
    (total, d_table), (terms_P, d_h) = shards.over_batch(part, table, h_PxD, weight_P, ids_Px1K)
    return (total, terms_P), (d_table, d_h) if with_gradient else None


def _in_blocks(held: shards.Rows, h_PxD, weight_P, ids_Px1K, *, block, with_gradient):
    """((total, its gradient of the table), (terms_P, gradient of h)); () for no gradient."""
    table = held.array
    a_position = ids_Px1K.shape[1] * table.shape[1] * table.dtype.itemsize
    of_cpu = min(block, max(CPU_BLOCK_BYTES // a_position, 1))
    cpu, default = (
        functools.partial(_scan_blocks, held.divided, block=size, with_gradient=with_gradient)
        for size in (of_cpu, block)
    )
    args = (table, h_PxD, weight_P, ids_Px1K)
    if of_cpu == block:
        return default(*args)
    return jax.lax.platform_dependent(*args, cpu=cpu, default=default)


def _scan_blocks(divided, table, h_PxD, weight_P, ids_Px1K, *, block, with_gradient):
    held, (size, width) = shards.Rows(table, divided), h_PxD.shape
    n_blocks = -(-size // block)

    def blocks(array):
        padded = jnp.pad(array, [(0, n_blocks * block - size)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(n_blocks, block, *array.shape[1:])

    def step(d_table, inputs):
        h, weight, ids = inputs
        items = held.get(ids)
        scores = held.sum(jnp.einsum("pd,pkd->pk", h, items))
        terms = weight * _nll(scores[:, 0], scores[:, 1:])
        if not with_gradient:
            return d_table, (terms, ())
        d_scores = weight[:, None] * jax.nn.softmax(scores, -1).at[:, 0].add(-1.0)
        d_h = jnp.einsum("pk,pkd->pd", d_scores, items)
        d_items = d_scores[:, :, None] * h[:, None, :]
        return held.add(d_table, ids, d_items), (terms, d_h)

    start = jnp.zeros_like(table) if with_gradient else ()
    xs = (blocks(h_PxD), blocks(weight_P), blocks(ids_Px1K))
    d_table, (terms, d_h) = jax.lax.scan(step, start, xs)
    terms_P = terms.ravel()[:size]
    d_h_PxD = d_h.reshape(-1, width)[:size] if with_gradient else ()
    return (jnp.sum(terms_P), d_table), (held.once(terms_P), d_h_PxD)


def _forward_rule(table, h_PxD, weight_P, target_P, negatives_PxK, block):
    return _forward(table, h_PxD, weight_P, target_P, negatives_PxK, block)


def _backward_rule(block, gradient, cotangents):
    d_table, d_h = gradient
    scale = cotangents[0]
    return scale * d_table, scale * d_h, None, None, None


position_negatives.defvjp(_forward_rule, _backward_rule)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def all_items(table, h_PxD, weight_P, target_P, block):
    """The exact softmax over all items, rows 1 and up of `table`, in blocks of `block` items.

    The normaliser is summed up block by block; the gradient computes the scores again, so that
    nothing of size (P, I) ever exists. Differentiable in `table` and `h_PxD`; `weight_P` is a
    constant.
    """
    return _all_items(table, h_PxD, weight_P, target_P, block)[0]


def _all_items(table, h_PxD, weight_P, target_P, block):
    def step(running, number):
        most_P, total_P = running
        _, rows, is_new = _rows_of_block(table, number, block)
        scores_PxN = jnp.where(is_new, h_PxD @ rows.T, -jnp.inf)
        more_P = jnp.maximum(most_P, scores_PxN.max(-1))
        fresh_P = jnp.sum(jnp.exp(scores_PxN - more_P[:, None]), -1)
        return (more_P, total_P * jnp.exp(most_P - more_P) + fresh_P), None

    start = (jnp.full(len(h_PxD), -jnp.inf), jnp.zeros(len(h_PxD)))
    (most_P, total_P), _ = jax.lax.scan(step, start, jnp.arange(_n_blocks(table, block)))
    normaliser_P = most_P + jnp.log(total_P)
    terms_P = weight_P * (normaliser_P - jnp.sum(h_PxD * table[target_P], -1))
    saved = (table, h_PxD, weight_P, target_P, normaliser_P)
    return (jnp.sum(terms_P), terms_P), saved


def _all_items_gradient(block, saved, cotangents):
    table, h_PxD, weight_P, target_P, normaliser_P = saved
    weight_P = cotangents[0] * weight_P

    def step(gradients, number):
        d_table, d_h = gradients
        first, rows, is_new = _rows_of_block(table, number, block)
        chance_PxN = jnp.exp(h_PxD @ rows.T - normaliser_P[:, None])
        d_scores = jnp.where(is_new, weight_P[:, None] * chance_PxN, 0.0)
        old = jax.lax.dynamic_slice_in_dim(d_table, first, len(rows))
        d_table = jax.lax.dynamic_update_slice_in_dim(d_table, old + d_scores.T @ h_PxD, first, 0)
        return (d_table, d_h + d_scores @ rows), None

    start = (jnp.zeros_like(table), jnp.zeros_like(h_PxD))
    (d_table, d_h), _ = jax.lax.scan(step, start, jnp.arange(_n_blocks(table, block)))
    d_table = d_table.at[target_P].add(-weight_P[:, None] * h_PxD)
    return d_table, d_h - weight_P[:, None] * table[target_P], None, None


def _n_blocks(table, block):
    return -(-(len(table) - 1) // block)


def _rows_of_block(table, number, block):
    """(first row, rows, which of them no earlier block had): the last block reaches back."""
    size = min(block, len(table) - 1)
    first = jnp.minimum(1 + number * block, len(table) - size)
    rows = jax.lax.dynamic_slice_in_dim(table, first, size)
    return first, rows, first + jnp.arange(size) >= 1 + number * block


all_items.defvjp(_all_items, _all_items_gradient)


def _nll(positive_P, negative_PxK):
    scores = jnp.concatenate([positive_P[:, None], negative_PxK], 1)
    return jax.nn.logsumexp(scores, -1) - positive_P


def pairwise(positive_P, negative_P, real_P, nan_if_empty: bool):
    """Mean over the real slots of softplus(-s+) + softplus(s-) (specs llm4cdsr §6)."""
    terms_P = jax.nn.softplus(-positive_P) + jax.nn.softplus(negative_P)
    return _masked_mean(terms_P, real_P, nan_if_empty)


def contrastive(x_NxD, y_NxD, tau, chosen_N, nan_if_empty: bool):
    """C(X, Y; tau) of specs llm4cdsr §6 over the chosen rows, soft targets as they are (Q15).

    The target of row i is a softmax of tau (X Xᵀ + Y Yᵀ) / 2, through which gradients flow; its
    columns are not normalised again for the second direction.
    """
    pair_NxN = chosen_N[:, None] & chosen_N[None, :]
    z_NxN = x_NxD @ y_NxD.T / tau
    alike_NxN = tau * (x_NxD @ x_NxD.T + y_NxD @ y_NxD.T) / 2
    target_NxN = jax.nn.softmax(jnp.where(chosen_N[None, :], alike_NxN, -1e30), -1)

    def log_softmax(logits_NxN):
        values = jax.nn.log_softmax(jnp.where(chosen_N[None, :], logits_NxN, -1e30), -1)
        return jnp.where(pair_NxN, values, 0.0)

    forth_N = jnp.sum(target_NxN * log_softmax(z_NxN), 1)
    back_N = jnp.sum(target_NxN.T * log_softmax(z_NxN.T), 1)
    return _masked_mean(-(forth_N + back_N) / 2, chosen_N, nan_if_empty)


def _masked_mean(values_N, chosen_N, nan_if_empty):
    """The mean of no value is 0, or with quirk Q8 not a number."""
    count = jnp.sum(chosen_N.astype(jnp.float32))
    total = jnp.sum(jnp.where(chosen_N, values_N, 0.0))
    return total / (count if nan_if_empty else jnp.maximum(count, 1.0))


def mean_cos2(probes: dict[str, Probe]):
    """Mean of cos²(X, X') over the tokens with a key, then over GCA modules (specs gca §1)."""

    def one(probe):
        dot = jnp.sum(probe.x * probe.update, -1)
        norms = jnp.sum(probe.x**2, -1) * jnp.sum(probe.update**2, -1)
        # A direction this short is rounding: without the bound its gradient would overflow, and
        # spoil the step even at λ = 0.
        there = norms > 1e-18
        cos2 = jnp.where(there, dot**2 / jnp.where(there, norms, 1.0), 0.0)
        return jnp.sum(cos2 * probe.has_key_P) / jnp.maximum(jnp.sum(probe.has_key_P), 1)

    return sum(map(one, probes.values())) / len(probes)
