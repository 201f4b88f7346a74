"""Ranks of the target, counted on the device: among given candidates and among all items; and the
metrics of them that training selects by, which `ranking.metrics` has on the host."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from oa_jax.nn.shards import Blocks

STORED_BYTES = 2**26  # of the scores of a block of users and all items, float32, on a device


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


@dataclasses.dataclass(frozen=True)
class AllItems:
    """Scores of all items of each row's domain that the user has not taken, a block at a time.

    score_items: ids (K,) of a block -> scores (B, K). Items are visited in the blocks of
    `shards.Blocks`: memory O(B·block) a device; ids without an item may come, and count nowhere.
    domain_B: 0 for A, 1 for B.  seen: rows and ids of what does not count, of one shape, such as
    (W,); rows out of range are passed over. Of a table (B, H) of ids: `seen_of`.
    """

    score_items: Callable
    domain_B: jax.Array
    seen: tuple[jax.Array, jax.Array]
    n_items: tuple[int, int]
    block: int

    @property
    def blocks(self) -> Blocks:
        return Blocks(sum(self.n_items), self.block)

    @property
    def numbers(self) -> jax.Array:
        """Those of the blocks."""
        return jnp.arange(len(self.blocks))

    @property
    def parts(self) -> tuple[int, int]:
        """(B, devices that hold the items)."""
        return len(self.domain_B), self.blocks.n_parts

    def visit(self, number) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(ids (K,), scores (B, K), which of them count (B, K)) of a block."""
        (n_a, n_b), in_b_Bx1 = self.n_items, self.domain_B[:, None] == 1
        ids_K = self.blocks.ids(number)
        counts = (ids_K >= 1) & (ids_K <= n_a + n_b) & ((ids_K > n_a) == in_b_Bx1)
        rows, ids = self.seen
        columns = self.blocks.columns(number, ids)
        return ids_K, self.score_items(ids_K), counts.at[rows, columns].set(False, mode="drop")


def seen_of(ids_BxH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each row has seen, as `AllItems` takes it. ids: 0 where empty."""
    rows = jnp.broadcast_to(jnp.arange(len(ids_BxH))[:, None], ids_BxH.shape)
    return rows, ids_BxH


def among_all(score_items, target_B, seen, n_items: tuple[int, int], block: int) -> Ranks:
    """Ranks among all items of the target's domain that the user has not taken before.

    Arguments: see `AllItems`. The target's score is read off the same products as its rivals', in
    a first pass, so that equal scores compare equal. Where the scores of all items take at most
    `STORED_BYTES` they are stored for the second; where they are more they are made again, which a
    GPU may round otherwise by a last digit.
    """
    domain_B = (target_B > n_items[0]).astype(jnp.int32)
    items = AllItems(score_items, domain_B, seen, n_items, block)
    by_part = items.blocks.by_part

    visited, visit = items.numbers, items.visit
    if 4 * len(target_B) * len(items.blocks) * items.blocks.width <= STORED_BYTES:
        visited, visit = jax.lax.map(items.visit, items.numbers), lambda block: block

    def find(target_scores, block):
        ids_K, scores, _ = visit(block)
        found = jnp.where(ids_K == target_B[:, None], scores, 0.0)
        return target_scores + by_part(found).sum(-1), None

    target_score_B = jax.lax.scan(find, jnp.zeros(items.parts), visited)[0].sum(-1)

    def count(counts, block):
        ids_K, scores, rival = visit(block)
        rival &= ids_K != target_B[:, None]
        above = rival & (scores > target_score_B[:, None])
        equal = rival & (scores == target_score_B[:, None])
        broken = rival & ~jnp.isfinite(scores)
        more = [by_part(of).sum(-1, dtype=jnp.int32) for of in (above, equal, rival, broken)]
        return jax.tree.map(jnp.add, counts, more), None

    counts, _ = jax.lax.scan(count, [jnp.zeros(items.parts, jnp.int32)] * 4, visited)
    above, equal, n_rivals, broken = (of.sum(-1) for of in counts)
    finite = jnp.isfinite(target_score_B) & (broken == 0)
    return Ranks(1 + above, equal, 1 + n_rivals, finite)


# Of validation users: rank (R,), real (R,) which of them count, domain (R,).
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
