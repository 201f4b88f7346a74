"""Figures of lists against closed forms and plain loops."""

import itertools

import numpy as np
import pytest

from oa_jax.ranking.beyond import Beyond, gini

N, K = 12, 4


@pytest.fixture(scope="module")
def lists():
    """(popularity, vectors, items (B, K), there, what each user took)."""
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(N)[:K] for _ in range(9)])
    there = np.ones((9, K), bool)
    there[0, 2:] = there[1, 1:] = False
    taken = [rng.choice(N, n) for n in (3, 1, 5, 2, 2, 1, 0, 4, 2)]
    popularity = rng.integers(0, 30, N)
    popularity[3] = 0
    return popularity, rng.normal(size=(N, 5)), items, there, taken


def figures(lists, parts=1):
    popularity, vectors, items, there, taken = lists
    mean = np.array([popularity[t].mean() if len(t) else np.nan for t in taken])
    beyond = Beyond(popularity, 100, vectors)
    for part in np.array_split(np.arange(len(items)), parts):
        beyond.add(items[part], there[part], mean[part])
    return beyond.figures()


def test_against_plain_loops(lists):
    popularity, vectors, items, there, taken = lists
    found = figures(lists)
    of_user = [row[ok].tolist() for row, ok in zip(items, there, strict=True)]
    flat = [item for one in of_user for item in one]
    assert found["coverage"] == len(set(flat)) / N
    counts = [flat.count(item) for item in range(N)]
    differences = sum(abs(a - b) for a, b in itertools.product(counts, counts))
    assert found["gini"] == pytest.approx(differences / (2 * N * sum(counts)))
    above = [1 + sum(p > popularity[i] for p in popularity) for i in range(N)]
    ties = [sum(p == popularity[i] for p in popularity) - 1 for i in range(N)]
    ranks = [a + t / 2 for a, t in zip(above, ties, strict=True)]
    assert found["popularity_rank"] == pytest.approx(np.mean([ranks[item] for item in flat]))
    bits = [-np.log2(max(popularity[item], 1) / 100) for item in flat]
    assert found["novelty"] == pytest.approx(np.mean(bits))
    own = [popularity[one].mean() for one, t in zip(of_user, taken, strict=True) if len(t)]
    before = [popularity[t].mean() for t in taken if len(t)]
    assert found["popularity_lift"] == pytest.approx(np.mean(own) / np.mean(before) - 1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = [
        np.mean([unit[a] @ unit[b] for a, b in itertools.combinations(one, 2)])
        for one in of_user
        if len(one) > 1
    ]
    assert found["intra_list_similarity"] == pytest.approx(np.mean(alike))


def test_lists_may_come_in_parts(lists):
    whole, parts = figures(lists), figures(lists, 4)
    assert whole == pytest.approx(parts) and len(whole) == 6


def test_closed_forms():
    """Everybody gets the same K items, or each item is in as many lists; items are all alike."""
    same = Beyond(np.arange(N), 50, np.ones((N, 3)))
    rows = np.tile(np.arange(K), (6, 1))
    same.add(rows, rows >= 0, np.full(6, np.arange(K).mean()))
    found = same.figures()
    assert found["coverage"] == K / N and found["gini"] == pytest.approx(1 - K / N)
    assert found["popularity_lift"] == 0 and found["intra_list_similarity"] == pytest.approx(1)
    assert found["popularity_rank"] == N - (K - 1) / 2
    even = Beyond(np.full(N, 25), 50)
    rows = np.arange(N).reshape(-1, K)
    even.add(rows, rows >= 0, np.full(len(rows), np.nan))
    found = even.figures()
    assert found["coverage"] == 1 and found["gini"] == pytest.approx(0)
    assert found["popularity_rank"] == (N + 1) / 2 and found["novelty"] == 1
    assert "popularity_lift" not in found and "intra_list_similarity" not in found


def test_one_item_for_all_is_the_largest_gini_and_nothing_has_no_figures():
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(1 - 1 / 4)
    np.testing.assert_array_equal(Beyond(np.array([5, 9, 5, 1]), 9).rank, [2.5, 1, 2.5, 4])
    assert Beyond(np.ones(3), 5).figures() == {}
