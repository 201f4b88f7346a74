"""Lists against a stable sort of all scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.ranking.best import best_of_all, best_on_average, ranks_of_all
from oa_jax.ranking.ranks import AllItems, among_all, seen_of

N_ITEMS, ROWS, K = (9, 14), 24, 5


@pytest.fixture(scope="module")
def case():
    """Few different scores, so that ties stand at the end of most lists."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-2, 3, (ROWS, sum(N_ITEMS) + 1)).astype(np.float32)
    seen = rng.integers(0, sum(N_ITEMS) + 1, (ROWS, 6))
    seen[3] = np.arange(1, 7)  # three items of A are left, fewer than a list holds
    domain = rng.integers(0, 2, ROWS)
    domain[3] = 0
    return scores, domain, seen


def items_of(case, block):
    scores, domain, seen = map(jnp.asarray, case)
    return AllItems(lambda ids: scores[:, ids], domain, seen_of(seen), N_ITEMS, block)


def sorted_items(scores, domain, seen):
    """Ids of the items that count, the best first, the smaller id first among equal ones."""
    n_a, n_all = N_ITEMS[0], sum(N_ITEMS)
    ids = np.arange(n_a + 1, n_all + 1) if domain else np.arange(1, n_a + 1)
    ids = ids[~np.isin(ids, seen)]
    return ids[np.argsort(-scores[ids], kind="stable")]


@pytest.mark.parametrize("block", [1, 4, 40])
def test_lists_are_what_a_stable_sort_begins_with(case, block):
    best = jax.jit(lambda: best_of_all(items_of(case, block), K))()
    for row, (scores, *rest) in enumerate(zip(*case, strict=True)):
        expected = sorted_items(scores, *rest)[:K]
        np.testing.assert_array_equal(best.items[row, : len(expected)], expected)
        np.testing.assert_array_equal(best.scores[row, : len(expected)], scores[expected])
        assert not best.items[row, len(expected) :].any()
    assert best.finite.all() and (np.asarray(best.items)[3] > 0).sum() == 3


def test_ties_are_those_of_the_evaluation(case):
    """An item's place in the list is among the ranks that it shares as a target."""
    scores, domain, seen = map(jnp.asarray, case)
    best = best_of_all(items_of(case, 4), K)
    for place in range(K):
        target = best.items[:, place]
        there = np.asarray(target) > 0
        ranks = among_all(lambda ids: scores[:, ids], target, seen_of(seen), N_ITEMS, 4)
        low, high = np.asarray(ranks.rank), np.asarray(ranks.rank + ranks.ties)
        assert ((low <= place + 1) & (place + 1 <= high))[there].all()
        assert place == 0 or (high > low)[there].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_reported_where_it_counts(case, value):
    scores, domain, seen = case
    spoilt = scores.copy()
    spoilt[7, sorted_items(scores[7], domain[7], seen[7])[-1]] = value
    spoilt[8, 0] = value  # no item
    for finite in (
        best_of_all(items_of((spoilt, domain, seen), 4), K).finite,
        ranks_of_all(items_of((spoilt, domain, seen), 4), 0.5)[1],
    ):
        np.testing.assert_array_equal(np.flatnonzero(~np.asarray(finite)), [7])


@pytest.mark.parametrize("tie_weight", [0.0, 0.5, 1.0])
def test_the_rank_of_every_item_is_its_rank_as_a_target(case, tie_weight):
    scores, domain, seen = map(jnp.asarray, case)
    ranks, _ = ranks_of_all(items_of(case, 4), tie_weight)
    for item in range(1, sum(N_ITEMS) + 1):
        counts = [item in sorted_items(*row) for row in zip(*case, strict=True)]
        taken = jnp.full(ROWS, item), seen_of(seen)
        found = among_all(lambda ids: scores[:, ids], *taken, N_ITEMS, 4)
        expected = np.where(counts, found.rank + tie_weight * found.ties, np.inf)
        np.testing.assert_array_equal(ranks[:, item], expected)


def test_the_mean_of_ranks_chooses(case):
    ranks = jnp.array([[[np.inf, 1, 2, 3]], [[np.inf, 4, 2, 1]]])
    items, mean = best_on_average(ranks, 4)
    np.testing.assert_array_equal(items, [[2, 3, 1, 0]])  # 2 and 3 are equal: the smaller id first
    np.testing.assert_array_equal(mean, [[2, 2, 2.5, np.inf]])
