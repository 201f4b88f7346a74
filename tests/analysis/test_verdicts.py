"""The conditions that would refute the mechanism, on runs whose answer is known."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import statistics, table, verdicts
from analysis.runs import check_metric, find_runs
from oa_jax.errors import UserError
from tests.analysis._plain import plain_run


def made(folder, *, angle, slope, gain, equal=True):
    """A baseline, its equal in parameters, and six widths of GCA early whose angle is about
    `angle` and whose quality goes with it by `slope`."""
    plain_run(folder / "base", n_parameters=1000)
    if equal:
        plain_run(folder / "wide", n_parameters=1210, seed=1, model__d_embed=36)
    for k in range(6):
        step = (k - 2.5) / 10
        plain_run(
            folder / f"early{k}",
            "early",
            better=gain + slope * step,
            seed=2 + k,
            gated=angle + step,
            cosine=lambda slot, place, domain: 0.3,
            n_parameters=1200,
            train__learning_rate=0.001 + k / 1000,
        )
    return find_runs(str(folder))[0]


def found(runs):
    frame = verdicts.verdicts(runs, "auc/full", draws=500)
    return {(r["condition"], r["domain"]): r for r in frame.iter_rows(named=True)}


def test_a_world_without_any_of_them(tmp_path):
    rows = found(made(tmp_path, angle=0.3, slope=-0.3, gain=0.4))
    for condition in ("not orthogonal", "positive", "parameters"):
        assert rows[condition, "A"]["verdict"] == "not met", condition
    assert rows["not orthogonal", "A"]["runs"] == 6
    assert rows["not orthogonal", "A"]["note"] == "above it: 1 of 6 configurations"
    assert rows["not orthogonal", "A"]["value"] == pytest.approx(0.3)
    assert rows["parameters", "A"]["value"] > 0
    row = rows["parameters", "A"]
    said = " on wide; the worst of 6 runs, its interval by Bonferroni's correction"
    assert row["note"].endswith(said)
    runs = find_runs(str(tmp_path))[0]
    plain = table.gains(runs, "wide", ("auc",), 500)[0].filter(domain="A", ranking="full")
    plain = plain.filter(pl.col("gain") == row["value"]).to_dicts()[0]
    wider = stats.t.isf(0.025 / 6, plain["df"]) / stats.t.isf(0.025, plain["df"])
    for end in ("low", "high"):
        assert row[end] - row["value"] == pytest.approx(wider * (plain[end] - plain["gain"]))
    # One data set says nothing of what follows what over data sets.
    assert rows["follows Y", "A"]["verdict"] == "open"
    assert "1 data set: expected at least 4" in rows["follows Y", "A"]["note"]


def test_a_world_with_all_of_them(tmp_path):
    rows = found(made(tmp_path, angle=0.9, slope=0.3, gain=-0.3))
    for condition in ("not orthogonal", "positive", "parameters"):
        assert rows[condition, "B"]["verdict"] == "met", condition


def test_without_an_equal_baseline_parameters_are_not_judged(tmp_path):
    rows = found(made(tmp_path, angle=0.3, slope=-0.3, gain=0.4, equal=False))
    assert not any(condition == "parameters" for condition, _ in rows)


def test_over_data_sets_the_one_follows_the_other(tmp_path):
    for k in range(5):
        angle = 0.1 + k / 10
        plain_run(
            tmp_path / f"set{k}",
            "early",
            fingerprint=f"{k}abcdef0",
            data__name=f"set{k}",
            cosine=lambda slot, place, domain, angle=angle: angle,
        )
    runs = find_runs(str(tmp_path))[0]
    rows = found(runs)  # (X, Y) of every run is 0.3: nothing to follow
    assert rows["follows Y", "A"]["verdict"] == "open" and rows["follows Y", "A"]["runs"] == 5


def test_no_runs_with_gca_no_verdicts(tmp_path):
    plain_run(tmp_path / "base")
    assert verdicts.verdicts(find_runs(str(tmp_path))[0]).is_empty()


def test_the_mixed_model_sees_through_configurations():
    """Between configurations y rises with x, within them it falls: the slope is within's sign."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 8)
    inner = rng.normal(0, 1, len(groups))
    x, y = 3 * groups + inner, 3 * groups - inner + rng.normal(0, 0.1, len(groups))
    slope, low, high = statistics.mixed(x, y, groups)
    assert statistics.pearson(x, y) > 0.9 and high < 0 and low < slope < high
    # Without an effect of the configuration it is the slope of least squares.
    x, y = rng.normal(0, 1, (2, 96))
    y = 0.5 * x + y
    slope, *_ = statistics.mixed(x, y, groups)
    assert slope == pytest.approx(statistics.pearson(x, y), abs=0.05)
    assert np.isnan(statistics.mixed([1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 1, 1])[0])
    # With a point each a group's intercept cannot be told from its noise.
    assert np.isnan(statistics.mixed([1, 2, 3, 4], [1, 3, 2, 5], [0, 0, 1, 2])[0])


def test_the_mixed_models_interval_covers_the_slope_with_few_configurations():
    """At normal quantiles it would cover 0.74 of them."""
    rng, covered = np.random.default_rng(0), []
    groups = np.repeat(np.arange(3), 5)
    for _ in range(100):
        x = 3 * rng.normal(size=3)[groups] + rng.normal(size=15)
        y = 0.3 * x + rng.normal(size=3)[groups] + 0.7 * rng.normal(size=15)
        _, low, high = statistics.mixed(x, y, groups)
        covered.append(low <= 0.3 * x.std() / y.std() <= high)
    assert np.mean(covered) > 0.9


def test_control_arms_do_not_decide_and_a_single_seed_leaves_it_open(tmp_path):
    made(tmp_path, angle=0.3, slope=0.0, gain=0.4)
    plain_run(tmp_path / "broken", "early", -0.5, 9, n_parameters=1200, gca__residual=False)
    row = found(find_runs(str(tmp_path))[0])["parameters", "A"]
    assert row["verdict"] == "not met" and row["runs"] == 6 and "broken" not in row["note"]
    plain_run(tmp_path / "one", "early", -0.5, 9, n_parameters=1200, seeds=1, gca__heads=4)
    row = found(find_runs(str(tmp_path))[0])["parameters", "A"]
    assert row["verdict"] == "open" and row["value"] < 0
    assert row["note"].startswith("one on wide") and "a single seed on a side" in row["note"]


def test_a_data_set_counts_once(tmp_path):
    """Two data sets under two protocols and two gates are no eight data sets."""
    for k in range(8):
        fields = {"protocol": ("official", "corrected")[k // 2 % 2], "data__name": f"set{k // 4}"}
        fields["gca__gate_act"] = ("sigmoid", "tanh")[k % 2]
        path = tmp_path / f"{k}"
        plain_run(
            path, "early", fingerprint=f"{k // 4}abcdef0", cosine=lambda *_, k=k: k / 10, **fields
        )
    frame = verdicts.verdicts(find_runs(str(tmp_path))[0], "auc/full", 100)
    rows = frame.filter(condition="follows Y", domain="A")
    assert rows["runs"].to_list() == [2] * 4 and set(rows["verdict"]) == {"open"}
    gates = [
        f"abxi · {p} · {g} gate · d=32"
        for p in ("official", "corrected")
        for g in ("sigmoid", "tanh")
    ]
    assert sorted(rows["setting"]) == sorted(gates)


def test_events_count_once_whatever_users_are_ranked(tmp_path):
    for k in range(4):
        users = {"evaluate__users_per_kind": 10 * k}
        plain_run(tmp_path / f"{k}", "early", cosine=lambda *_, k=k: k / 10, **users)
    frame = verdicts.verdicts(find_runs(str(tmp_path))[0], "auc/full", 100)
    row = frame.filter(condition="follows Y", domain="A").row(0, named=True)
    assert row["runs"] == 1 and "1 data set:" in row["note"]


def test_quality_that_goes_with_the_width_is_not_held_against_the_angle(tmp_path):
    for width in (32, 64):
        for k in range(5):
            wide, step = 0.3 * (width == 64), 0.02 * k
            fields = {"model__d_embed": width, "train__learning_rate": 0.001 + k / 1000}
            path = tmp_path / f"{width}-{k}"
            plain_run(path, "early", wide - step, gated=0.2 + wide + step, **fields)
    row = found(find_runs(str(tmp_path))[0])["positive", "A"]
    assert row["verdict"] == "not met" and row["value"] < 0


def test_a_run_without_the_gated_angle_decides_nothing_of_it(tmp_path):
    for k in range(2):
        plain_run(tmp_path / f"new{k}", "early", gated=0.6, gca__heads=1 + k)
    plain_run(tmp_path / "old", "early", gca__heads=4, gated="", cosine=lambda *_: 0.1)
    assert found(find_runs(str(tmp_path))[0])["not orthogonal", "A"]["value"] == pytest.approx(0.6)


def test_an_unknown_metric_is_one_line(tmp_path):
    plain_run(tmp_path / "early", "early")
    with pytest.raises(UserError, match="--metric=ndcg@7: no such metric"):
        check_metric("ndcg@7", find_runs(str(tmp_path))[0])


def test_controls_do_not_decide_the_angle(tmp_path):
    for k in range(3):
        rate = {"train__learning_rate": 0.001 * (1 + k)}
        plain_run(tmp_path / f"early{k}", "early", gated=0.6 + k / 100, **rate)
        for arm in ({"gca__source": "shuffled"}, {"gca__ortho_weight": 1.0}):
            path = tmp_path / f"{next(iter(arm))}{k}"
            plain_run(path, "early", gated=0.1, **arm, **rate)
    row = found(find_runs(str(tmp_path))[0])["not orthogonal", "A"]
    assert row["runs"] == 3 and row["value"] == pytest.approx(0.61)


def test_of_equal_baselines_the_best_on_validation_is_the_one(tmp_path):
    plain_run(tmp_path / "a_bad", better=-0.2, train__learning_rate=1.0)
    plain_run(tmp_path / "b_good", better=0.2)
    other = plain_run(tmp_path / "c_other", better=0.4, train__learning_rate=0.5)
    env = json.loads((other / "env.json").read_text())
    env["fingerprints"]["candidates_test"] = "else"
    (other / "env.json").write_text(json.dumps(env))
    early = plain_run(tmp_path / "early", "early", n_parameters=1001)
    runs = {run.name: run for run in find_runs(str(tmp_path))[0]}
    assert verdicts.equal_of(runs[early.name], list(runs.values())).name == "b_good"
