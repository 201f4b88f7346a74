import json
import math
import pathlib

import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.ranking.metrics import metrics_by_domain, rank_metrics

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "metrics.json").read_text())
RANK = np.array(GOLDEN["ranks_1based"])
DOMAIN = np.array(GOLDEN["domains"])
NO_TIES = np.zeros_like(RANK)
OURS = {"HR@5": "hr@5", "HR@10": "hr@10", "NDCG@10": "ndcg@10", "MRR": "mrr"}


def test_abxi_golden():
    overall = rank_metrics(RANK, NO_TIES, 1000, tie_weight=0)
    by_domain = metrics_by_domain(RANK, NO_TIES, 1000, DOMAIN, 0, "uni999")
    for theirs, ours in OURS.items():
        golden = GOLDEN["abxi"]
        assert overall[ours] == pytest.approx(golden["all"][theirs], rel=1e-14)
        assert by_domain[f"A/{ours}/uni999"] == pytest.approx(golden["A"][theirs], rel=1e-14)
        assert by_domain[f"B/{ours}/uni999"] == pytest.approx(golden["B"][theirs], rel=1e-14)
    assert by_domain["A/users"] == (DOMAIN == 0).sum()
    assert by_domain["B/users"] == (DOMAIN == 1).sum()


def test_llm4cdsr_golden():
    overall = rank_metrics(RANK, NO_TIES, 1000, tie_weight=0)
    by_domain = metrics_by_domain(RANK, NO_TIES, 1000, DOMAIN, 0, "uni999")
    for theirs in ("NDCG@10", "HR@10"):
        golden, ours = GOLDEN["llm4cdsr"], OURS[theirs]
        assert overall[ours] == pytest.approx(golden["overall"][theirs], rel=1e-14)
        for name in "AB":
            expected = golden[name][f"{theirs}_{name}"]
            assert by_domain[f"{name}/{ours}/uni999"] == pytest.approx(expected, rel=1e-14)


def test_golden_tells_ranks_from_zero_apart():
    wrong = rank_metrics(RANK + 1, NO_TIES, 1001, tie_weight=0)
    assert wrong["ndcg@10"] != pytest.approx(GOLDEN["abxi"]["all"]["NDCG@10"], rel=1e-2)


def test_by_hand():
    # Ranks 1, 3, 10 and 21 of 21 candidates.
    got = rank_metrics([1, 3, 10, 21], [0, 0, 0, 0], 21, tie_weight=0)
    assert got == pytest.approx(
        {
            "hr@5": 2 / 4,
            "hr@10": 3 / 4,
            "hr@20": 3 / 4,
            "ndcg@1": 1 / 4,
            "ndcg@5": (1 + 1 / 2) / 4,  # 1/log2(2) = 1, 1/log2(4) = 1/2
            "ndcg@10": (1.5 + 1 / math.log2(11)) / 4,
            "ndcg@20": (1.5 + 1 / math.log2(11)) / 4,
            "mrr": (1 + 1 / 3 + 1 / 10 + 1 / 21) / 4,
            "auc": (20 + 18 + 11 + 0) / 20 / 4,
        },
        rel=1e-15,
    )


def test_cutoffs_are_inclusive():
    at = {k: rank_metrics([k], [0], 100, 0) for k in (5, 6, 10, 11, 20, 21)}
    assert [at[k][f"hr@{c}"] for c in (5, 10, 20) for k in (c, c + 1)] == [1, 0] * 3


def test_ties_by_hand():
    # Two candidates above, four tied with the target: rank 3 first, 5 in the middle, 7 last.
    for weight, rank in ((0, 3), (0.5, 5), (1, 7)):
        got = rank_metrics([3], [4], 11, weight)
        assert got["mrr"] == pytest.approx(1 / rank)
        assert got["auc"] == pytest.approx((11 - rank) / 10)
    # A half rank: 1 + 0.5 * 9 = 5.5 is outside of 5 and inside of 10.
    got = rank_metrics([1], [9], 11, 0.5)
    assert (got["hr@5"], got["hr@10"]) == (0, 1)
    assert got["ndcg@10"] == pytest.approx(1 / math.log2(6.5))


def _counted_auc(scores_RxK):
    """Share of (target, negative) pairs in the right order, a tied pair counting half."""
    shares = []
    for target, *negatives in scores_RxK:
        pairs = [1.0 if target > s else 0.5 if target == s else 0.0 for s in negatives]
        shares.append(sum(pairs) / len(pairs))
    return sum(shares) / len(shares)


def _counts(scores_RxK):
    others, target = scores_RxK[:, 1:], scores_RxK[:, :1]
    return 1 + (others > target).sum(1), (others == target).sum(1)


def test_auc_is_the_share_of_pairs_in_order():
    # Few distinct scores, hence many ties.
    scores_RxK = np.random.default_rng(0).integers(0, 6, (200, 30)).astype(float)
    rank, ties = _counts(scores_RxK)
    assert ties.sum() > 500
    expected = _counted_auc(scores_RxK)
    assert rank_metrics(rank, ties, 30, 0.5)["auc"] == pytest.approx(expected, rel=1e-12)
    # The twin: with the ties on the target's side it is another number.
    assert rank_metrics(rank, ties, 30, 0)["auc"] > expected + 0.05


def test_rank_example_of_both_official_codes():
    rank, _ = _counts(np.array(GOLDEN["rank_example"]["scores"]))
    assert rank.tolist() == GOLDEN["rank_example"]["abxi_rank_1based(strictly greater + 1)"]


def test_number_of_candidates_per_user():
    got = rank_metrics([2, 2], [0, 0], [3, 11], 0)
    assert got["auc"] == pytest.approx((1 / 2 + 9 / 10) / 2)
    by_domain = metrics_by_domain([2, 2], [0, 0], [3, 11], [1, 0], 0, "full")
    assert by_domain["A/auc/full"] == pytest.approx(9 / 10)
    assert by_domain["B/auc/full"] == pytest.approx(1 / 2)


def test_constant_scores_are_chance_at_mid_rank_and_perfect_at_official_rank():
    rank, ties = _counts(np.zeros((5, 1000)))
    assert rank_metrics(rank, ties, 1000, 0.5)["auc"] == pytest.approx(0.5)
    assert rank_metrics(rank, ties, 1000, 0)["mrr"] == 1  # quirk Q10


def test_empty_domain_is_nan_and_counts_nobody():
    got = metrics_by_domain([1, 2], [0, 0], 10, [0, 0], 0, "full")
    assert got["A/users"] == 2 and got["A/mrr/full"] == 0.75
    assert got["B/users"] == 0
    b = [value for key, value in got.items() if key.startswith("B/") and key != "B/users"]
    assert len(b) == 9 and all(math.isnan(value) for value in b)


@pytest.mark.parametrize(
    "rank, ties, n_candidates",
    [(0, 0, 10), (11, 0, 10), (5, 6, 10), (1, -1, 10), (1, 0, 1), (float("nan"), 0, 10)],
)
def test_impossible_counts_are_refused(rank, ties, n_candidates):
    with pytest.raises(UserError, match="row 1: rank"):
        rank_metrics([1, rank], [0, ties], [10, n_candidates], 0)


def test_a_weight_of_ties_is_from_0_to_1():
    with pytest.raises(UserError, match="^tie_weight=7: expected a number from 0 to 1"):
        rank_metrics([1], [0], 10, 7)


def test_unknown_domain_is_refused():
    with pytest.raises(UserError, match="domain"):
        metrics_by_domain([1, 1], [0, 0], 10, [0, 2], 0, "full")
