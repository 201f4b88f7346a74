import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax.ranking.ranks import among_all, among_candidates, seen_of

N_ITEMS = (9, 14)
ROWS, SEEN = 24, 7


def naive(target, rivals):
    """(rank, ties, n_candidates, finite) by the definition."""
    return (
        1 + sum(rival > target for rival in rivals),
        sum(rival == target for rival in rivals),
        1 + len(rivals),
        bool(np.isfinite(target) and np.isfinite(rivals).all()),
    )


def scores_with_ties(shape, seed=0, odd=True):
    """Few different values; some rows hold NaN or infinities, the target's place included."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, shape).astype(np.float32)
    if odd:
        for value in (np.nan, np.inf, -np.inf):
            scores[rng.random(shape) < 0.04] = value
        scores[:3, 0] = np.nan, np.inf, -np.inf
    return scores


def check(ranks, expected):
    for got, column in zip(ranks, zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(got, column)


@pytest.mark.parametrize("width", [2, 6, 21])
def test_among_candidates(width):
    scores = scores_with_ties((ROWS, width))
    ranks = among_candidates(jnp.asarray(scores))
    expected = [naive(row[0], row[1:]) for row in scores]
    check(ranks, expected)
    assert any(e[1] for e in expected) and 0 < sum(e[3] for e in expected) < ROWS
    # Another column as target gives other ranks.
    other = among_candidates(jnp.asarray(scores[:, ::-1]))
    assert (other.rank != ranks.rank).any()


def test_by_hand():
    scores = jnp.array([[2.0, 3.0, 2.0, 1.0], [5.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    ranks = among_candidates(scores)
    np.testing.assert_array_equal(ranks.rank, [2, 1, 4])
    np.testing.assert_array_equal(ranks.ties, [1, 0, 0])


def test_nan_takes_rank_1_but_is_reported():
    """Quirk Q9: no comparison with NaN is true."""
    ranks = among_candidates(jnp.full((2, 5), jnp.nan).at[1].set(1.0))
    np.testing.assert_array_equal(ranks.rank, [1, 1])
    np.testing.assert_array_equal(ranks.finite, [False, True])


def rows(seed=1):
    """Targets of both domains, the ends of each included; seen items without the target."""
    rng = np.random.default_rng(seed)
    target = rng.integers(1, sum(N_ITEMS) + 1, ROWS)
    target[:4] = 1, N_ITEMS[0], N_ITEMS[0] + 1, sum(N_ITEMS)
    seen = rng.integers(0, sum(N_ITEMS) + 1, (ROWS, SEEN))
    seen[seen == target[:, None]] = 0
    seen[5] = 0
    return target, seen


def scores_of_all(odd=True):
    return scores_with_ties((ROWS, sum(N_ITEMS) + 1), seed=2, odd=odd)


def rivals(target, seen, n_items=N_ITEMS):
    domain = (
        range(1, n_items[0] + 1)
        if target <= n_items[0]
        else range(n_items[0] + 1, sum(n_items) + 1)
    )
    return [item for item in domain if item != target and item not in seen]


def full(scores, target, seen, block):
    def score_items(ids):
        return jnp.asarray(scores)[:, ids]

    return among_all(score_items, jnp.asarray(target), seen_of(seen), N_ITEMS, block)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("stored", [0, 2**26])
@pytest.mark.parametrize("block", [1, 4, 9, 23, 40])
def test_among_all(block, stored, odd, monkeypatch):
    """By scores that are made once, and by ones that are made twice."""
    monkeypatch.setattr("oa_jax.ranking.ranks.STORED_BYTES", stored)
    scores, (target, seen) = scores_of_all(odd), rows()
    ranks = jax.jit(lambda *args: full(*args, block))(scores, target, seen)
    expected = [
        naive(s[t], s[rivals(t, row)]) for s, t, row in zip(scores, target, seen, strict=True)
    ]
    check(ranks, expected)
    assert any(e[1] for e in expected) and (odd or all(e[3] for e in expected))


def test_seen_items_and_the_other_domain_do_not_count():
    scores, (target, seen) = scores_of_all(odd=False), rows()
    ranks = full(scores, target, seen, 4)
    counted = full(scores, target, seen * 0, 4)
    assert (counted.n_candidates > ranks.n_candidates).any()
    # What may not count gets the best of all scores, and NaN: neither is noticed.
    for value in (99.0, np.nan):
        spoilt = np.full_like(scores, value)
        for row, (t, s) in enumerate(zip(target, seen, strict=True)):
            keep = [t, *rivals(t, s)]
            spoilt[row, keep] = scores[row, keep]
        for one, other in zip(full(spoilt, target, seen, 4), ranks, strict=True):
            np.testing.assert_array_equal(one, other)
        assert (full(spoilt, target, seen * 0, 4).rank != counted.rank).any() or np.isnan(value)
        assert (full(spoilt, target, seen * 0, 4).finite != counted.finite).any() or value == 99.0


def test_a_target_that_was_taken_before_is_ranked_all_the_same():
    scores, (target, seen) = scores_of_all(odd=False), rows()
    again = full(scores, target, np.column_stack([seen, target]), 4)
    for one, other in zip(again, full(scores, target, seen, 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_items_of_a_domain_seen():
    target, seen = np.array([3, 12]), np.zeros((2, 13), int)
    seen[0, :8] = [1, 2, 4, 5, 6, 7, 8, 9]
    seen[1, :13] = [10, 11, *range(13, 24)]
    ranks = among_all(lambda ids: jnp.zeros((2, len(ids))), target, seen_of(seen), N_ITEMS, 5)
    check(ranks, [(1, 0, 1, True)] * 2)


def test_a_collapsed_model_ties_with_everything():
    ranks = among_candidates(jnp.full((3, 8), 0.5))
    check(ranks, [(1, 7, 8, True)] * 3)
    target, seen = rows()
    ranks = full(np.full((ROWS, sum(N_ITEMS) + 1), 0.5), target, seen, 4)
    expected = [len(rivals(t, s)) for t, s in zip(target, seen, strict=True)]
    check(ranks, [(1, n, n + 1, True) for n in expected])


def test_a_targets_score_is_not_read_off_another_block():
    """A position far above all others ranks first wherever it stands."""
    target, seen = rows()
    scores = scores_of_all(odd=False)
    scores[np.arange(ROWS), target] = 50
    for block in (1, 4, 40):
        np.testing.assert_array_equal(full(scores, target, seen, block).rank, 1)
    scores[np.arange(ROWS), target] = -50
    expected = [1 + len(rivals(t, s)) for t, s in zip(target, seen, strict=True)]
    np.testing.assert_array_equal(full(scores, target, seen, 4).rank, expected)
