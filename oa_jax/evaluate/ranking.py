"""Ranks of the target, counted on the device: among given candidates and among all items."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from oa_jax.models.shards import Blocks


class Ranks(NamedTuple):
    """Of each row: 1 + candidates scored above the target, other candidates scored equal, number
    of candidates (the target included), and whether all scores were finite."""

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
    `shards.Blocks`: memory O(B·block). Ids without an item, whose scores count nowhere, may come.
    The target's score is read off the same products as its rivals', in a first pass, so that
    equal scores compare equal.
    """
    n_a, n_all = n_items[0], sum(n_items)
    first_B = jnp.where(target_B > n_a, n_a + 1, 1)
    last_B = jnp.where(target_B > n_a, n_all, n_a)
    blocks = Blocks(n_all, block)
    numbers, rows = jnp.arange(len(blocks)), jnp.arange(len(target_B))[:, None]

    def scores_of(number):
        ids_K = blocks.ids(number)
        return ids_K, score_items(ids_K)

    def find(target_score_B, number):
        ids_K, scores = scores_of(number)
        hit = ids_K == target_B[:, None]
        found = jnp.sum(jnp.where(hit, scores, 0.0), 1)
        return jnp.where(hit.any(1), found, target_score_B), None

    target_score_B, _ = jax.lax.scan(find, jnp.zeros(len(target_B)), numbers)

    def count(ranks, number):
        ids_K, scores = scores_of(number)
        rival = (ids_K >= first_B[:, None]) & (ids_K <= last_B[:, None])
        rival &= ids_K != target_B[:, None]
        rival = rival.at[rows, blocks.columns(number, seen_BxH)].set(False, mode="drop")
        above = rival & (scores > target_score_B[:, None])
        equal = rival & (scores == target_score_B[:, None])
        finite = jnp.all(jnp.isfinite(scores) | ~rival, 1)
        more = (above.sum(1), equal.sum(1), rival.sum(1))
        counts = [old + new.astype(jnp.int32) for old, new in zip(ranks[:3], more, strict=True)]
        return Ranks(*counts, ranks.finite & finite), None

    one = jnp.ones(len(target_B), jnp.int32)
    begin = Ranks(one, 0 * one, one, jnp.isfinite(target_score_B))
    return jax.lax.scan(count, begin, numbers)[0]
