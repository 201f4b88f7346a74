"""Ranks of the target, counted on the device: among given candidates and among all items."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from oa_jax.nn.shards import Blocks


class Ranks(NamedTuple):
    """Of each row (B,): 1 + candidates scored above the target, other candidates scored equal,
    number of candidates (the target included), and whether all scores were finite."""

    rank: jax.Array
    ties: jax.Array
    n_candidates: jax.Array
    finite: jax.Array


def among_candidates(scores_BxK) -> Ranks:
    """Ranks of column 0 among the K candidates."""
    target, others = scores_BxK[:, :1], scores_BxK[:, 1:]
    return Ranks(
        1 + jnp.sum(others > target, 1, dtype=jnp.int32),
        jnp.sum(others == target, 1, dtype=jnp.int32),
        jnp.full(scores_BxK.shape[0], scores_BxK.shape[1], jnp.int32),
        jnp.all(jnp.isfinite(scores_BxK), 1),
    )


def among_all(score_items, target_B, seen_BxH, n_items: tuple[int, int], block: int) -> Ranks:
    """Ranks among all items of the target's domain that the user has not taken before.

    score_items: ids (K,) of a block -> scores (B, K). Items are visited in the blocks of
    `shards.Blocks`: memory O(B·block) a device; ids without an item may come, and count nowhere.
    The target's score is read off the same products as its rivals', in a first pass, so that
    equal scores compare equal.
    """
    n_a, n_all = n_items[0], sum(n_items)
    first_B = jnp.where(target_B > n_a, n_a + 1, 1)
    last_B = jnp.where(target_B > n_a, n_all, n_a)
    blocks = Blocks(n_all, block)
    numbers, rows = jnp.arange(len(blocks)), jnp.arange(len(target_B))[:, None]

    def find(target_scores, number):
        ids_K = blocks.ids(number)
        found = jnp.where(ids_K == target_B[:, None], score_items(ids_K), 0.0)
        return target_scores + blocks.by_part(found).sum(-1), None

    parts = (len(target_B), blocks.n_parts)
    target_score_B = jax.lax.scan(find, jnp.zeros(parts), numbers)[0].sum(-1)

    def count(counts, number):
        ids_K = blocks.ids(number)
        scores = score_items(ids_K)
        rival = (ids_K >= first_B[:, None]) & (ids_K <= last_B[:, None])
        rival &= ids_K != target_B[:, None]
        rival = rival.at[rows, blocks.columns(number, seen_BxH)].set(False, mode="drop")
        above = rival & (scores > target_score_B[:, None])
        equal = rival & (scores == target_score_B[:, None])
        broken = rival & ~jnp.isfinite(scores)
        more = [blocks.by_part(of).sum(-1, dtype=jnp.int32) for of in (above, equal, rival, broken)]
        return jax.tree.map(jnp.add, counts, more), None

    counts, _ = jax.lax.scan(count, [jnp.zeros(parts, jnp.int32)] * 4, numbers)
    above, equal, n_rivals, broken = (of.sum(-1) for of in counts)
    finite = jnp.isfinite(target_score_B) & (broken == 0)
    return Ranks(1 + above, equal, 1 + n_rivals, finite)
