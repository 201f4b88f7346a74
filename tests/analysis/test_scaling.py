"""Curves and ratios by hand; nothing beyond the sizes that there are."""

import pathlib

import numpy as np
import polars as pl
import pytest

from analysis import scaling
from analysis.runs import find_runs
from tests.analysis._plain import plain_run


def test_isotonic_means_by_hand():
    # 3 and 1 violate the order: their mean 2, weighted by seeds 1 and 3: 1.5.
    sizes, quality = [1, 2, 3, 4], [0.0, 3.0, 1.0, 5.0]
    assert scaling.Curve(sizes, quality).quality_DxU.tolist() == [[0, 2, 2, 5]]
    weighted = scaling.Curve(sizes, quality, [1, 1, 3, 1])
    assert weighted.quality_DxU.tolist() == [[0, 1.5, 1.5, 5]]


def test_two_sizes_are_a_line_over_the_logarithm():
    curve = scaling.Curve([1e6, 4e6], [0.10, 0.20])
    assert curve.size_for(0.15)[0] == pytest.approx(2e6)
    assert curve.size_for(0.10)[0] == 1e6 and curve.size_for(0.20)[0] == pytest.approx(4e6)


def test_size_for_is_the_inverse_of_the_curve():
    rng = np.random.default_rng(0)
    curve = scaling.Curve(np.geomspace(1e6, 3e7, 6), np.sort(rng.uniform(0, 1, (50, 6)), 1))
    low, high = curve.quality_DxU[:, 0], curve.quality_DxU[:, -1]
    asked = low + rng.uniform(0.01, 0.99, 50) * (high - low)
    sizes = curve.size_for(asked)
    assert np.diag(curve(sizes)) == pytest.approx(asked, abs=1e-9)


def test_the_curve_never_falls():
    rng = np.random.default_rng(1)
    curve = scaling.Curve(np.geomspace(1, 100, 7), rng.normal(0, 1, (20, 7)))
    assert np.diff(curve(np.geomspace(1, 100, 300)), axis=1).min() > -1e-12


def test_a_plateau_is_reached_at_its_beginning():
    curve = scaling.Curve([1, 10, 100, 1000], [0.1, 0.5, 0.5, 0.9])
    assert curve.size_for(0.5)[0] == pytest.approx(10)


def test_outside_there_is_no_size():
    curve = scaling.Curve([1, 2], [0.1, 0.2])
    assert curve.size_for(0.3)[0] == np.inf and curve.size_for(0.05)[0] == 0
    with pytest.raises(ValueError, match="at least 2 different"):
        scaling.Curve([5, 5], [0.1, 0.2])


def points(qualities, variant, sizes, spread=0.002, seeds=5):
    """Points of one setting and domain with seeds about their mean."""
    seeds_S = spread * np.linspace(-1, 1, seeds)
    pairs = zip(sizes, qualities, strict=True)
    return pl.concat([point(variant, size, quality + seeds_S) for size, quality in pairs])


def point(variant, size, values):
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    row = {"setting": "s", "domain": "A", "variant": variant, "parameters": int(size), "sd": sd}
    row |= {"quality": float(np.mean(values)), "n_seeds": len(values), "values": list(values)}
    return pl.DataFrame([row], schema=scaling.POINTS)


def test_a_ratio_by_hand_with_its_interval():
    base = points([0.10, 0.20], "baseline", [1e6, 4e6])
    early = points([0.15], "early", [1.25e6])
    row = scaling.ratios(pl.concat([base, early]), 500).to_dicts()[0]
    assert row["ratio"] == pytest.approx(2e6 / 1.25e6) and not row["note"]
    assert 1.4 < row["low"] < 1.6 < row["high"] < 1.8
    # With seeds that agree, the interval closes.
    certain = points([0.10, 0.20], "baseline", [1e6, 4e6], spread=0)
    early = points([0.15], "early", [1.25e6], spread=0)
    row = scaling.ratios(pl.concat([certain, early]), 100).to_dicts()[0]
    assert row["low"] == pytest.approx(row["ratio"]) == row["high"]


def test_seeds_are_the_weights_of_points_of_one_size():
    """Of the curve and of its draws: six seeds of 0.2 and two of 0.3 are 0.225."""
    parts = [(1e6, [0.1] * 4), (4e6, [0.2] * 6), (4e6, [0.3] * 2)]
    base = [point("baseline", size, values) for size, values in parts]
    row = scaling.ratios(pl.concat([*base, point("early", 1e6, [0.1625] * 3)]), 50).to_dicts()[0]
    assert row["low"] == pytest.approx(row["ratio"]) == row["high"] == pytest.approx(2)


def test_draws_vary_as_the_mean_of_the_seeds_does():
    values = [0.1, 0.12, 0.15]
    found = scaling.drawn(point("early", 1e6, values).to_dicts()[0], np.random.default_rng(0), 9999)
    expected = scaling.t_over_normal(4) * np.std(values, ddof=1) / np.sqrt(3)
    assert np.std(found) == pytest.approx(expected, rel=0.03)
    assert np.mean(found) == pytest.approx(np.mean(values), abs=0.1 * expected)


def coverage(n_seeds, repeats):
    """Share of experiments of five sizes whose interval holds the true ratio, 1.2."""
    rng, hits, sizes = np.random.default_rng(n_seeds), 0, np.geomspace(1e6, 4e6, 5)
    for i in range(repeats):
        drawn = []
        for variant, size, equal in [("baseline", n, n) for n in sizes] + [
            ("early", 1.6e6, 1.92e6)
        ]:
            truth = 0.1 + 0.1 * np.log(equal / 1e6) / np.log(4)
            drawn.append(point(variant, size, rng.normal(truth, 0.004, n_seeds)))
        row = scaling.ratios(pl.concat(drawn), 300, seed=i).to_dicts()[0]
        hits += (row["low"] or 0) <= 1.2 <= (row["high"] or np.inf)
    return hits / repeats


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_the_interval_covers_the_true_ratio(n_seeds):
    """Without Student's t: 0.79 for two seeds, 0.89 for three, 0.93 for five."""
    assert coverage(n_seeds, 200) >= 0.93


@pytest.mark.slow
def test_without_students_t_it_covers_too_little(monkeypatch):
    monkeypatch.setattr(scaling, "t_over_normal", lambda df: 1.0)
    assert coverage(2, 100) < 0.87


def test_outside_the_range_is_a_bound_and_said():
    base = points([0.10, 0.20], "baseline", [1e6, 4e6])
    for quality, words in ((0.30, "more than 2.00"), (0.05, "less than 0.50")):
        both = pl.concat([base, points([quality], "stack", [2e6])])
        row = scaling.ratios(both, 100).to_dicts()[0]
        assert row["ratio"] is None and words in row["note"] and "not extrapolated" in row["note"]
        assert (row["more_than"], row["less_than"]) == (2, None) or row["less_than"] == 0.5
        assert scaling.value(row)[2:] == words[-4:]
    both = pl.concat([base, points([0.1995], "stack", [2e6])])
    near = scaling.ratios(both, 300).to_dicts()[0]
    assert near["ratio"] is not None and near["low"] is not None and near["high"] is None
    assert "above the baseline's range" in near["note"]
    assert "above the range]" in scaling.bounds(near)


def test_one_baseline_size_or_one_seed_is_said():
    one = points([0.1], "baseline", [1e6]), points([0.15], "early", [2e6])
    row = scaling.ratios(pl.concat(one))
    assert row["ratio"][0] is None and "no curve: 1 baseline size" in row["note"][0]
    base = points([0.1, 0.2], "baseline", [1e6, 4e6])
    row = scaling.ratios(pl.concat([base, point("early", 1e6, [0.15])])).to_dicts()[0]
    assert row["ratio"] == pytest.approx(2) and row["low"] is None and "no interval" in row["note"]


def test_the_papers_points_through_the_same_code():
    """ABXI, Food-Kitch, domain A: early at 11.76 M needs a baseline of about 17 M, 1.45 times."""
    paper = scaling.published_points()
    table = scaling.ratios(paper, 200)
    food = table.filter(setting="ABXI · Food-Kitch · as drawn", domain="A", variant="early")
    assert food["ratio"][0] == pytest.approx(1.45, abs=0.01)
    assert food["ratio"].to_list()[1:] == [None, None]  # above every baseline
    # Beauty-Elec, B: the baseline is better than GCA at its size in the paper's own figure.
    beauty = table.filter(setting="ABXI · Beauty-Elec · as drawn", domain="B")
    assert beauty["ratio"].max() < 0.9
    # Where a figure contradicts Table 1, both are there; elsewhere there is one.
    settings = set(paper["setting"])
    assert "ABXI · Beauty-Elec · as in Table 1" in settings
    assert "ABXI · Food-Kitch · as in Table 1" not in settings


@pytest.mark.slow
def test_the_table_of_the_readme_is_what_the_command_prints():
    table, said = scaling.ratios(scaling.published_points()), {}
    for row in table.iter_rows(named=True):  # of each series the first point
        key = row["setting"], row["variant"], row["domain"]
        said.setdefault(key, f"{scaling.value(row)} {scaling.bounds(row)}".strip())
    text = (pathlib.Path(scaling.__file__).parent / "README.md").read_text()
    for setting in table["setting"].unique():
        cells = [said[setting, variant, d] for d in "AB" for variant in ("early", "stack")]
        assert f"| {' | '.join([setting, *cells])} |" in text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("scaling")
    plain_run(path / "small", n_parameters=1_000_000)
    plain_run(path / "more", n_parameters=1_000_000, first_seed=3, seed=4)
    plain_run(path / "wide", better=0.2, model__d_embed=64, n_parameters=4_000_000, seed=1)
    plain_run(path / "early", "early", better=0.1, n_parameters=1_500_000, seed=2)
    plain_run(path / "later", "stack", finished=False)
    return find_runs(str(path))[0]


def test_seeds_of_one_configuration_are_put_together(runs):
    found = scaling.points_of(runs).filter(domain="A")
    assert found.select("variant", "parameters", "n_seeds").rows() == [
        ("baseline", 1_000_000, 6),
        ("early", 1_500_000, 3),
        ("baseline", 4_000_000, 3),
    ]
    assert found["source"][0] == "more, small"
    assert found["sd"][0] == pytest.approx(np.std(found["values"][0].to_list(), ddof=1))
    table = scaling.ratios(scaling.points_of(runs, "mrr"), 200)
    assert table["ratio"].is_not_null().all()


def test_of_learning_rates_the_best_on_validation_counts(tmp_path):
    on_test = {"val": 0.0, "test": 0.6}  # which nobody may look at
    for number, (better, rate) in enumerate([(on_test, 1e-3), (0.3, 2e-3), (0.1, 4e-3)]):
        plain_run(tmp_path / f"rate{number}", better=better, seed=number, train__learning_rate=rate)
    plain_run(tmp_path / "wide", model__d_embed=64, seed=3, train__learning_rate=4e-3)
    found = scaling.points_of(find_runs(str(tmp_path))[0]).filter(domain="A")
    assert sorted(found["source"]) == ["rate1", "wide"]
    runs = find_runs(str(tmp_path))[0]
    (best,) = (run for run in runs if run.name == "rate1")
    best.summary["per_seed"][0] = {"seed": 0, "diverged_step": 7}  # which has no score
    assert best in scaling.at_best_rate(runs)


def test_baselines_of_other_models_are_named(tmp_path):
    for width in (16, 32, 64):
        fields = {"model__d_embed": width, "model__d_ffn": 3 * width, "n_parameters": width}
        plain_run(tmp_path / f"{width}", train__learning_rate=1e-3 * width, **fields)
    assert scaling.mixed_curves(find_runs(str(tmp_path))[0]) == []
    plain_run(tmp_path / "untied", model__tied=False, model__d_embed=128, n_parameters=99)
    plain_run(tmp_path / "dropout", model__dropout=0.1, model__d_embed=64, n_parameters=65)
    (line,) = scaling.mixed_curves(find_runs(str(tmp_path))[0])
    assert "differ in model.dropout, model.d_ffn, model.tied: no curve" in line


def test_figures_draw_the_curve_and_skip_what_cannot_be_compared(runs):
    points = scaling.points_of(runs)
    (figure,) = scaling.draw(points, "ndcg@10", scaling.ratios(points, 100)).values()
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"baseline, monotone", "early (± sd)"} <= set(labels)
    assert "millions" in figure.axes[0].get_xlabel()
    alone = points.filter(parameters=1_000_000)
    assert scaling.draw(alone, "ndcg@10", scaling.ratios(alone, 100)) == {}


def test_tables_hold_no_nan(runs):
    points = scaling.points_of(runs)
    frame = pl.concat([points, scaling.published_points()])
    table = scaling.ratios(points, 100)
    for each in (frame, table):
        numbers = each.select(pl.col(pl.Float64))
        assert not any(numbers[c].is_nan().any() for c in numbers.columns)
