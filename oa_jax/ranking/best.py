"""The best items of each row, found on the device: lists, where `ranks` has places of a target."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from oa_jax.ranking.ranks import AllItems


class Best(NamedTuple):
    """Of each row: its best items (B, k), best first, 0 where there are no more; their scores, or
    mean ranks; and whether all scores were finite (B,).

    Items of equal scores share the ranks that they have in the evaluation, rank to rank + ties:
    in a list the smaller id comes first.
    """

    items: jax.Array
    scores: jax.Array
    finite: jax.Array


def best_of_all(items: AllItems, k: int) -> Best:
    """The k best of all items that count, exactly: what a stable sort of all scores begins with.

    Memory O(B·(block + k)) a device. Each device keeps the best of the items that it holds, in
    the order of their ids, and they meet once, at the end.
    """
    by_part = items.blocks.by_part

    def take(scores, ids):
        scores, place = jax.lax.top_k(scores, k)  # of equal ones the first
        return scores, jnp.take_along_axis(ids, place, -1)

    def visit(carry, number):
        best_scores, best_ids, broken = carry
        ids_K, scores_BxK, counts_BxK = items.visit(number)
        broken += by_part(counts_BxK & ~jnp.isfinite(scores_BxK)).sum(-1, dtype=jnp.int32)
        ids = by_part(jnp.where(counts_BxK, ids_K, 0))
        scores = by_part(jnp.where(counts_BxK, scores_BxK, -jnp.inf))
        best = [jnp.concatenate(of, -1) for of in ((best_scores, scores), (best_ids, ids))]
        return (*take(*best), broken), None

    begin = jnp.full((*items.parts, k), -jnp.inf), jnp.zeros((*items.parts, k), jnp.int32)
    begin = *begin, jnp.zeros(items.parts, jnp.int32)
    (*best, broken), _ = jax.lax.scan(visit, begin, items.numbers)
    scores, ids = take(*(of.reshape(len(of), -1) for of in best))
    return Best(ids, scores, broken.sum(-1) == 0)


def ranks_of_all(items: AllItems, tie_weight: float) -> tuple[jax.Array, jax.Array]:
    """Rank of every item, (B, 1 + I), as if it were the target, and whether all were finite (B,).

    The rank is 1 + items above + tie_weight · others that are equal; inf where an item does not
    count. Memory O(B·I).
    """
    n_all = sum(items.n_items)

    def visit(carry, number):
        every, broken = carry
        ids_K, scores_BxK, counts_BxK = items.visit(number)
        broken += (counts_BxK & ~jnp.isfinite(scores_BxK)).sum(-1, dtype=jnp.int32)
        scores_BxK = jnp.where(counts_BxK, scores_BxK, -jnp.inf)
        return (every.at[:, ids_K].set(scores_BxK, mode="drop"), broken), None

    every = jnp.full((len(items.domain_B), 1 + n_all), -jnp.inf)
    begin = every, jnp.zeros(len(every), jnp.int32)
    (every, broken), _ = jax.lax.scan(visit, begin, items.numbers)
    negative = -every
    order = jnp.sort(negative, -1)

    def of_row(order, negative):
        # From the sorted scores: how many are above, and how many equal.
        above, up_to = (jnp.searchsorted(order, negative, side) for side in ("left", "right"))
        return 1 + above + tie_weight * (up_to - above - 1)

    ranks = jax.vmap(of_row)(order, negative)
    return jnp.where(every > -jnp.inf, ranks, jnp.inf), broken == 0


def best_on_average(ranks_SxBxI: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(items (B, k), mean ranks (B, k)): the items of the least mean rank over seeds, the smaller
    id first among equal ones; 0 and inf where there are no more."""
    # Of sums, which are exact: equal means must compare equal.
    less, items = jax.lax.top_k(-ranks_SxBxI.sum(0), k)
    return jnp.where(jnp.isfinite(less), items, 0), -less / len(ranks_SxBxI)
