"""Intervals cover as often as they say, tests find what they say, formulas agree with others'."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.power import TTestIndPower

from analysis.resampling import (
    cluster_interval,
    compare,
    detectable,
    probability_of_improvement,
    standard_error,
)

MODELS = {  # standard deviations of seed, user (the gain's), seed × user
    "seeds": (0.5, 0.0, 0.1),
    "users": (0.0, 1.0, 0.1),
    "interaction": (0.0, 0.3, 0.9),
    "all": (0.1, 0.3, 0.3),
}


def simulated(rng, model, n_seeds, n_users, gain=0.0):
    """Two runs: users alike for both, a gain that differs by user, seeds, and noise."""
    of_seed, of_user, noise = MODELS[model]
    base_R = rng.normal(0, 1, n_users)
    sides = []
    for lift_R in (gain + rng.normal(0, of_user, n_users), 0.0):
        seeds_Sx1 = rng.normal(0, of_seed, (n_seeds, 1))
        sides.append(base_R + lift_R + seeds_Sx1 + rng.normal(0, noise, (n_seeds, n_users)))
    return sides


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_cover_and_tests_keep_their_level(model, n_seeds):
    rng, repeats = np.random.default_rng(1), 250
    found = [
        compare(*(s[None] for s in simulated(rng, model, n_seeds, 40)), rng, 200)[0]
        for _ in range(repeats)
    ]
    covered = sum(d.low <= 0 <= d.high for d in found)
    rejected = sum(d.p < 0.05 for d in found)
    # 95 % of the repeats, give or take: once in 10,000 tests beyond these bounds by chance.
    low, high = scipy.stats.binom.ppf([5e-5, 1 - 5e-5], repeats, 0.95)
    assert low - 5 <= covered <= high + 5
    low, high = scipy.stats.binom.ppf([5e-5, 1 - 5e-5], repeats, 0.05)
    assert low - 5 <= rejected <= high + 5


def test_an_interval_is_as_wide_as_students_t():
    """Of seeds on both sides, by the standard error of the model; a wider one covers too."""
    a, b = simulated(np.random.default_rng(7), "all", 5, 60)
    (found,) = compare(a[None], b[None], np.random.default_rng(0), 4000)
    se, df = standard_error(a, b)
    half = scipy.stats.t.isf(0.025, df) * se
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["seeds", "all"])
def test_a_single_seed_borrows_the_variance_of_the_others(model):
    """Five seeds against one; taken for fixed, it gave 0.73 covered and 0.28 rejected."""
    rng, repeats, covered, rejected = np.random.default_rng(1), 300, 0, 0
    for _ in range(repeats):
        a, b = simulated(rng, model, 5, 40)
        (found,) = compare(a[None], b[None, :1], rng, 200)
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert covered >= 0.93 * repeats and rejected <= 0.07 * repeats


def test_seeds_that_cannot_vary_give_an_interval_but_no_test():
    a, b = simulated(np.random.default_rng(2), "all", 1, 40)
    for other in (b[None], None):
        (found,) = compare(a[None], other, np.random.default_rng(0), 200)
        assert found.low < found.estimate < found.high
        assert np.isnan([found.p, found.mde]).all()


def test_a_bootstrap_of_users_alone_covers_too_little():
    """The twin: without the seeds' share, the same simulation must fail."""
    rng, covered, repeats = np.random.default_rng(1), 0, 200
    for _ in range(repeats):
        a, b = simulated(rng, "seeds", 5, 40)
        users_R = a.mean(0) - b.mean(0)
        half = 1.96 * users_R.std(ddof=1) / np.sqrt(len(users_R))
        covered += abs(users_R.mean()) <= half
    assert covered < 0.5 * repeats


def test_the_standard_error_is_that_of_the_model():
    rng = np.random.default_rng(3)
    for model, (of_seed, of_user, noise) in MODELS.items():
        s, r = 5, 30
        expected = 2 * of_seed**2 / s + of_user**2 / r + 2 * noise**2 / (s * r)
        found = [standard_error(*simulated(rng, model, s, r))[0] ** 2 for _ in range(300)]
        assert np.mean(found) == pytest.approx(expected, rel=0.2), model


def test_the_standard_error_by_hand():
    """Two-way analysis of variance of 3 seeds and 4 users, and their interaction by loops."""
    side = np.random.default_rng(8).normal(0, 1, (3, 4))
    rest = [
        (side[s, r] - side[s].mean() - side[:, r].mean() + side.mean()) ** 2
        for s in range(3)
        for r in range(4)
    ]
    interaction, seeds = sum(rest) / (2 * 3), side.mean(1).var(ddof=1)
    users = max(side.mean(0).var(ddof=1) / 4 - interaction / 12, 0)
    assert standard_error(side)[0] == pytest.approx(np.sqrt(seeds / 3 + users))


def test_constant_users_give_welch():
    """Without users that differ, the test is Welch's t test of the seeds' means."""
    rng = np.random.default_rng(4)
    a_S, b_T = rng.normal(1, 1, 6), rng.normal(0, 3, 4)
    sides = [np.repeat(v[:, None], 50, 1)[None] for v in (a_S, b_T)]
    found = compare(*sides, rng, 200)[0]
    welch = scipy.stats.ttest_ind(a_S, b_T, equal_var=False)
    assert found.p == pytest.approx(welch.pvalue) and found.df == pytest.approx(welch.df)
    assert found.estimate == pytest.approx(a_S.mean() - b_T.mean())


def test_users_are_paired():
    """A difference that is the same for every user is certain, however much users differ."""
    base_R = np.random.default_rng(5).normal(0, 100, 60)
    a, b = (np.tile(base_R + lift, (3, 1))[None] for lift in (0.25, 0.0))
    found = compare(a, b, np.random.default_rng(0), 200)[0]
    assert found.estimate == pytest.approx(0.25)
    assert max(abs(found.low - 0.25), abs(found.high - 0.25)) < 1e-9
    shuffled = compare(a, b[..., ::-1], np.random.default_rng(0), 200)[0]
    assert shuffled.high - shuffled.low > 10


def test_a_run_against_itself_is_no_difference():
    a = np.random.default_rng(6).normal(0, 1, (2, 4, 30))
    for found in compare(a, a, np.random.default_rng(0), 300):
        assert found.estimate == 0 and found.low < 0 < found.high and found.p == 1


def test_no_variation_at_all_gives_no_p_value():
    ones = np.ones((1, 3, 10))
    found = compare(ones, ones, np.random.default_rng(0), 100)[0]
    assert found.estimate == 0 == found.low == found.high and np.isnan(found.p)


def test_draws_in_blocks_are_the_same_interval(monkeypatch):
    a, b = (s[None] for s in simulated(np.random.default_rng(0), "all", 4, 50))
    whole = compare(a, b, np.random.default_rng(9), 2000)[0]
    monkeypatch.setattr("analysis.resampling.BLOCK", 3000)
    parts = compare(a, b, np.random.default_rng(9), 2000)[0]
    assert parts.low == pytest.approx(whole.low, abs=0.1 * whole.se)
    assert parts.high == pytest.approx(whole.high, abs=0.1 * whole.se)


@pytest.mark.parametrize("n_seeds", [2, 3, 5, 10])
def test_detectable_effect_is_that_of_statsmodels(n_seeds):
    effect = TTestIndPower().solve_power(nobs1=n_seeds, alpha=0.05, power=0.8)
    se = np.sqrt(2 / n_seeds)
    assert detectable(se, 2 * n_seeds - 2) == pytest.approx(effect, rel=2e-3)


def test_detectable_effect_is_detected_at_its_power():
    rng, repeats = np.random.default_rng(11), 20_000
    gain = detectable(np.sqrt(2 / 5), 8)
    a, b = rng.normal(gain, 1, (5, repeats)), rng.normal(0, 1, (5, repeats))
    power = np.mean(scipy.stats.ttest_ind(a, b).pvalue < 0.05)
    assert power == pytest.approx(0.8, abs=5 * np.sqrt(0.8 * 0.2 / repeats))


def test_probability_of_improvement_counts_pairs():
    a, b = [3.0, 1.0, 2.0], [2.0, 0.0]
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert probability_of_improvement(a, b) == pytest.approx(np.mean(pairs)) == 0.75


def test_cluster_intervals_cover_where_plain_ones_do_not():
    """The mean of 12 clusters of 6 equal values each: only 12 of the 72 values are new."""
    rng, repeats, hit = np.random.default_rng(12), 150, {"clusters": 0, "points": 0}
    for _ in range(repeats):
        x = np.repeat(rng.normal(0, 1, 12), 6)
        for name, labels in (("clusters", np.repeat(np.arange(12), 6)), ("points", np.arange(72))):
            low, high, lost = cluster_interval(labels, lambda i, x=x: x[i].mean(), rng, 100)
            hit[name] += low <= 0 <= high
            assert lost == 0
    assert hit["clusters"] >= scipy.stats.binom.ppf(1e-4, repeats, 0.88)
    assert hit["points"] < 0.7 * repeats


def test_too_few_clusters_or_draws_without_value_give_no_interval():
    rng = np.random.default_rng(0)
    assert np.isnan(cluster_interval([0, 0, 1, 1], np.mean, rng, 100)).all()
    low, high, lost = cluster_interval([0, 1, 2, 3], lambda i: np.nan, rng, 100)
    assert np.isnan(low) and np.isnan(high) and lost == 1
    for undefined in (40, 60):  # of 100: up to half of them may be
        draws = iter([np.nan] * undefined + [1.0] * 100)
        low, high, lost = cluster_interval([0, 1, 2, 3], lambda i, d=draws: next(d), rng, 100)
        assert (low == 1 == high) == (undefined < 50) and lost == pytest.approx(undefined / 100)
