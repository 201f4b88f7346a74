"""Losses that the backbones share: sampled softmax without a (B, L, K, D) gather, pairwise and
contrastive terms, and the orthogonality penalty.

Both sampled forms of the softmax take packed positions and return (total, terms_P): the weighted
sum of -log softmax(target) over the target and its rivals, which is differentiable, and its terms,
which are for reading only. Rivals are K negatives of each position, or of each row.
"""

import functools

import jax
import jax.numpy as jnp

from oa_jax.nn import shards
from oa_jax.nn.fusion import Probe
from oa_jax.nn.layers import Packing

Loss = tuple[jax.Array, dict[str, jax.Array]]  # a scalar, and scalars to log


def shared_negatives(
    table: jax.Array,
    h_PxD: jax.Array,
    weight_P: jax.Array,
    target_P: jax.Array,
    packing: Packing,
    negatives_BxK: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Negatives shared by all positions of a row: gathered once a row, scored as one product."""
    scores_BxLxK = shards.products(table, packing.unpack(h_PxD), negatives_BxK)
    positive_P = jnp.sum(h_PxD * shards.rows(table, target_P), -1)
    terms_P = weight_P * _nll(positive_P, packing.pack(scores_BxLxK))
    return jnp.sum(terms_P), jax.lax.stop_gradient(terms_P)


LANES = 128
TPU_BLOCK = 256  # positions whose products with all items stay in vector memory
# A CPU is fastest while the item vectors of a block, and their gradients, stay in its cache.
CPU_BLOCK_BYTES = 2**21


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def position_negatives(
    table: jax.Array,
    h_PxD: jax.Array,
    weight_P: jax.Array,
    target_P: jax.Array,
    negatives_PxK: jax.Array,
    block: int,
    form: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Negatives of each position's own, in blocks of positions.

    form: "gather" looks up the vectors of the drawn items, of at most `block` positions at a time,
    on a CPU of as many as take `CPU_BLOCK_BYTES`.  "products" multiplies with the whole table and
    picks the scores of the drawn items out; its rounding is that of the device's matrix products.
    "counts" does so too, and weighs all scores by how often each item was drawn, which is a product
    of one-hot digits: nothing is looked up or scattered, for more products.
    Their blocks are a third of the positions, on a TPU `TPU_BLOCK`.  "auto": products on
    accelerators where they are the smaller array (V scores at most K·D), gather elsewhere.

    The gradient is formed in the forward pass, while a block's scores are at hand, so nothing of a
    block outlives it and nothing is gathered twice.
    Differentiable in `table` and `h_PxD`; `weight_P` is a constant.
    """
    return _forward(table, h_PxD, weight_P, target_P, negatives_PxK, block, form)[0]


def _forward(table, h_PxD, weight_P, target_P, negatives_PxK, block, form):
    ids_Px1K = jnp.concatenate([target_P[:, None], negatives_PxK], 1)
    part = functools.partial(_in_blocks, block=block, form=form)
    (total, d_table), (terms_P, d_h) = shards.over_batch(part, table, h_PxD, weight_P, ids_Px1K)
    return (total, terms_P), (d_table, d_h)


def _in_blocks(held: shards.HeldRows, h_PxD, weight_P, ids_Px1K, *, block, form):
    """((total, its gradient of the table), (terms_P, gradient of h))."""
    table, by = held.array, functools.partial(_scan_blocks, held.divided)
    of_position = ids_Px1K.shape[1] * table.shape[1]
    of_cpu = min(block, max(CPU_BLOCK_BYTES // (of_position * table.dtype.itemsize), 1))
    forms = {
        "cpu": functools.partial(by, _gathered, of_cpu),
        "default": functools.partial(by, _gathered, block),
    }
    if form in ("products", "counts") or (form == "auto" and len(table) <= of_position):
        # On a TPU one seed after another, so that table, gradient and scores of a block stay in
        # vector memory.
        every = _counted if form == "counts" else _picked
        of_tpu = functools.partial(by, every, TPU_BLOCK)
        forms["tpu"] = jax.custom_batching.sequential_vmap(of_tpu)
        forms["default"] = functools.partial(by, every, -(-len(h_PxD) // 3))
        if form != "auto":
            forms["cpu"] = forms["default"]
    elif of_cpu == block:
        return forms["cpu"](table, h_PxD, weight_P, ids_Px1K)
    return jax.lax.platform_dependent(table, h_PxD, weight_P, ids_Px1K, **forms)


def _softmax_of(scored):
    """A form, of one that gives scores (P, K) of the rows `ids` for each position, and what makes
    of their gradient that of the table, added to one, and that of h."""

    def form(held, d_table, h_PxD, weight_P, ids_PxK):
        own, back = scored(held, h_PxD, ids_PxK)
        scores = held.sum(own)
        terms = weight_P * _nll(scores[:, 0], scores[:, 1:])
        d_scores = weight_P[:, None] * jax.nn.softmax(scores, -1).at[:, 0].add(-1.0)
        return terms, *back(d_table, d_scores)

    return form


@_softmax_of
def _gathered(held, h_PxD, ids_PxK):
    items = held.get(ids_PxK)

    def back(d_table, d_scores):
        d_items = d_scores[:, :, None] * h_PxD[:, None, :]
        d_h = jnp.einsum("pk,pkd->pd", d_scores, items)
        return held.add(d_table, ids_PxK, d_items), d_h

    return jnp.einsum("pd,pkd->pk", h_PxD, items), back


@_softmax_of
def _picked(held, h_PxD, ids_PxK):
    """Without a vector of an item by itself: out of the products with all rows."""
    every_PxV, places = h_PxD @ held.array.T, held.places(ids_PxK)

    def back(d_table, d_scores):
        rows = jnp.arange(len(h_PxD))[:, None]
        d_every = jnp.zeros_like(every_PxV).at[rows, places].add(d_scores, mode="drop")
        return d_table + d_every.T @ h_PxD, d_every @ held.array

    return jnp.take_along_axis(every_PxV, places, 1, mode="fill", fill_value=0), back


def _counted(held, d_table, h_PxD, weight_P, ids_PxK):
    """A form without a look-up or a scatter."""
    every_PxV, places = h_PxD @ held.array.T, held.places(ids_PxK)
    times_PxV, target_PxV = (_counts(of, every_PxV.shape[1]) for of in (places, places[:, :1]))
    peak_P = held.largest(jnp.max(jnp.where(times_PxV > 0, every_PxV, -1e30), 1))
    share_PxV = times_PxV * jnp.exp(jnp.minimum(every_PxV - peak_P[:, None], 0.0))
    total_P = held.sum(share_PxV.sum(1))
    terms = weight_P * (jnp.log(total_P) + peak_P - held.sum((target_PxV * every_PxV).sum(1)))
    d_every = weight_P[:, None] * (share_PxV / total_P[:, None] - target_PxV)
    return terms, d_table + d_every.T @ h_PxD, d_every @ held.array


def _counts(places_PxK, n_rows):
    """(P, V): how often each row is among the places of a position."""
    high, low = (
        jax.nn.one_hot(digit, size, dtype=jnp.bfloat16)
        for digit, size in ((places_PxK // LANES, -(-n_rows // LANES)), (places_PxK % LANES, LANES))
    )
    counts = jnp.einsum("pkh,pkl->phl", high, low, preferred_element_type=jnp.float32)
    return counts.reshape(len(places_PxK), -1)[:, :n_rows]


def _scan_blocks(divided, form, block, table, h_PxD, weight_P, ids_Px1K):
    held, (size, width) = shards.HeldRows(table, divided), h_PxD.shape
    n_blocks = -(-size // block)

    def blocks(array):
        padded = jnp.pad(array, [(0, n_blocks * block - size)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(n_blocks, block, *array.shape[1:])

    def step(d_table, inputs):
        terms, d_table, d_h = form(held, d_table, *inputs)
        return d_table, (terms, d_h)

    xs = (blocks(h_PxD), blocks(weight_P), blocks(ids_Px1K))
    d_table, (terms, d_h) = jax.lax.scan(step, jnp.zeros_like(table), xs)
    terms_P = terms.ravel()[:size]
    return (jnp.sum(terms_P), d_table), (held.once(terms_P), d_h.reshape(-1, width)[:size])


def _backward(block, form, gradient, cotangents):
    scale = cotangents[0]
    return *(scale * d for d in gradient), None, None, None  # nothing for weights and ids


position_negatives.defvjp(_forward, _backward)


def whole_domain(
    table: jax.Array,
    h_PxD: jax.Array,
    weight_P: jax.Array,
    target_P: jax.Array,
    n_items: tuple[int, int],
    block: int,
) -> jax.Array:
    """The softmax without sampling: rivals are all other items of the target's domain.

    Scores (block, V) of a block of positions are taken at a time, and again in the backward pass.
    """
    ids, (n_a, n_b) = jnp.arange(len(table)), n_items

    @jax.checkpoint
    def term(position):
        h_D, target = position
        rival = (ids >= 1) & (ids <= n_a + n_b) & ((ids > n_a) == (target > n_a))
        scores = jnp.where(rival, table @ h_D, -1e30)
        return jax.nn.logsumexp(scores) - scores[target]

    return jnp.sum(weight_P * jax.lax.map(term, (h_PxD, target_P), batch_size=block))


def position_binary(
    table: jax.Array,
    h_PxD: jax.Array,
    weight_P: jax.Array,
    target_P: jax.Array,
    negatives_PxK: jax.Array,
) -> jax.Array:
    """The weighted sum of binary cross-entropies: -log σ(s+) - Σ_k log(1 - σ(s-_k))."""
    positive_P = jnp.sum(h_PxD * shards.rows(table, target_P), -1)
    negative_PxK = shards.products(table, h_PxD, negatives_PxK)
    terms_P = jax.nn.softplus(-positive_P) + jax.nn.softplus(negative_PxK).sum(-1)
    return jnp.sum(weight_P * terms_P)


def _nll(positive_P, negative_PxK):
    scores = jnp.concatenate([positive_P[:, None], negative_PxK], 1)
    return jax.nn.logsumexp(scores, -1) - positive_P


def pairwise(
    positive_P: jax.Array, negative_P: jax.Array, real_P: jax.Array, nan_if_empty: bool
) -> jax.Array:
    """Mean over the real slots of softplus(-s+) + softplus(s-), as BCE with logits gives it."""
    terms_P = jax.nn.softplus(-positive_P) + jax.nn.softplus(negative_P)
    return _masked_mean(terms_P, real_P, nan_if_empty)


def contrastive(
    x_NxD: jax.Array, y_NxD: jax.Array, tau: jax.Array, chosen_N: jax.Array, nan_if_empty: bool
) -> jax.Array:
    """C(X, Y; tau) of LLM4CDSR over the chosen rows, soft targets as they are (Q15).

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


def mean_cos2(probes: dict[str, Probe], part_of: str = "update") -> jax.Array:
    """Mean of cos²(X, X') over the tokens with a key, then over fusions; with "gated" of
    cos²(X, α ⊙ X'), which does not depend on the signs of X' (`angles`)."""

    def one(probe):
        x, update = (a.astype(jnp.float32) for a in (probe.x, probe.update))
        update = update if part_of == "update" else probe.gate * update
        dot = jnp.sum(x * update, -1)
        norms = jnp.sum(x**2, -1) * jnp.sum(update**2, -1)
        # A direction this short is rounding: without the bound its gradient would overflow, and
        # spoil the step even at λ = 0.
        there = norms > 1e-18
        cos2 = jnp.where(there, dot**2 / jnp.where(there, norms, 1.0), 0.0)
        return jnp.sum(cos2 * probe.has_key_P) / jnp.maximum(jnp.sum(probe.has_key_P), 1)

    return sum(map(one, probes.values())) / len(probes)


def penalised(
    total: jax.Array,
    aux: dict[str, jax.Array],
    probes: dict[str, Probe],
    weight: jax.Array,
    part_of: str,
) -> Loss:
    """(total + weight · `mean_cos2`, aux with "cos2"); as they are without any fusion."""
    if not probes:
        return total, aux
    cos2 = mean_cos2(probes, part_of)
    return total + weight * cos2, aux | {"cos2": cos2}
