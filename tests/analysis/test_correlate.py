"""Coefficients against closed forms and brute force; what is undefined is said, never a number."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.stats

from analysis import angles, correlate, output, statistics
from analysis.resampling import cluster_interval
from analysis.runs import find_runs, read_run
from tests.analysis._plain import plain_run

RNG = np.random.default_rng


def test_pearson_of_known_points():
    # Deviations (-1, 0, 1) and (-2, 1, 1): 3 / √(2 · 6).
    assert statistics.pearson([1, 2, 3], [0, 3, 3]) == pytest.approx(3 / np.sqrt(12))
    assert statistics.pearson([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)


def test_spearman_is_that_of_scipy_with_ties():
    x, y = RNG(0).integers(0, 5, 40), RNG(1).integers(0, 5, 40)
    assert statistics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_partial_of_one_covariate_is_the_closed_form():
    x, y, z = RNG(0).normal(0, 1, (3, 50)) + RNG(1).normal(0, 1, 50)
    r = np.corrcoef([x, y, z])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert statistics.partial(x, y, z[:, None]) == pytest.approx(expected)


def test_partial_of_many_is_that_of_the_inverse_covariance():
    data = RNG(2).normal(0, 1, (60, 5)) @ RNG(3).normal(0, 1, (5, 5))
    p = np.linalg.inv(np.cov(data.T))
    expected = -p[0, 1] / np.sqrt(p[0, 0] * p[1, 1])
    found = statistics.partial(data[:, 0], data[:, 1], data[:, 2:])
    assert found == pytest.approx(expected)
    # Constant and doubled covariates change nothing.
    more = np.column_stack([data[:, 2:], np.full(60, 1e6), 2 * data[:, 2] + 1])
    assert statistics.partial(data[:, 0], data[:, 1], more) == pytest.approx(expected)


def test_partial_removes_what_only_the_covariate_explains():
    size = np.repeat([1.0, 2, 3, 4], 10)
    x, y = size + RNG(0).normal(0, 0.1, 40), size + RNG(1).normal(0, 0.1, 40)
    assert statistics.pearson(x, y) > 0.95
    assert abs(statistics.partial(x, y, size[:, None])) < 0.4


def test_within_takes_the_means_of_the_groups_away():
    groups = np.repeat(["a", "b", "c"], 5)
    means = {"a": (0, 0), "b": (5, 5), "c": (9, 9)}
    rest = RNG(0).normal(0, 1, 15)
    x = np.array([means[g][0] for g in groups]) + rest
    y = np.array([means[g][1] for g in groups]) - rest
    assert statistics.pearson(x, y) > 0.8
    assert statistics.within(x, y, groups) == pytest.approx(-1)
    by_hand = [v - v.reshape(3, 5).mean(1).repeat(5) for v in (x, y)]
    assert statistics.within(x, y, groups) == pytest.approx(np.corrcoef(*by_hand)[0, 1])


def test_leave_one_out_is_the_range_of_all():
    x, y, c = RNG(0).normal(0, 1, 12), RNG(1).normal(0, 1, 12), np.repeat(np.arange(4), 3)
    values = [statistics.pearson(x[c != k], y[c != k]) for k in range(4)]
    assert statistics.leave_one_out(x, y, c) == (min(values), max(values))


@pytest.mark.parametrize(
    "value",
    [
        statistics.pearson([1, 2], [3, 4]),
        statistics.pearson([1, 1, 1], [1, 2, 3]),
        statistics.pearson([0.3, 0.3, 0.1 + 0.2], [1, 2, 3]),
        statistics.spearman([1, 2, 3], [4, 4, 4]),
        statistics.partial([1.0, 2, 3, 4], [4.0, 1, 3, 2], np.array([[1.0], [2], [3], [4]])),
        statistics.partial([1.0, 2, 3], [4.0, 1, 3], np.array([[1.0], [2], [4]])),
        statistics.within([1, 2, 3], [1, 2, 3], ["a", "b", "c"]),
        statistics.within([1, 1, 2, 2], [1, 2, 3, 4], ["a", "a", "b", "b"]),
    ],
)
def test_undefined_is_nan(value):
    assert np.isnan(value)


def made_points(n_configurations, n_seeds, seed=0, slope=1.0, constant=False):
    """Points of the schema of `points_of`, configurations and seeds with effects of their own."""
    rng, rows = RNG(seed), []
    for c in range(n_configurations):
        centre, level = rng.normal(0, 1, 2)
        for s in range(n_seeds):
            x = 0.5 if constant else centre + rng.normal(0, 0.3)
            y = slope * centre + level + rng.normal(0, 0.3)
            rows.append(
                {
                    **{"run": f"r{c}", "variant": "early", "setting": "s", "statistic": "cos_abs"},
                    **{"configuration": f"c{c}", "seed": s, "place": "0", "domain": "A"},
                    **{
                        "x": x,
                        "y": y,
                        "null": 0.1,
                        "published": -0.328,
                        "log_parameters": float(c % 3),
                    },
                    **{"hidden_size": 32.0, "progress": rng.uniform(0.5, 1)},
                }
            )
    return pl.DataFrame(rows)


@pytest.mark.slow
@pytest.mark.parametrize("n_configurations", [10, 60])
def test_the_interval_of_r_covers_the_true_r(n_configurations):
    """r of two normal centres with slope 1 is known. Ten configurations are the fewest whose
    interval is not called rough; 60 are those of the study `phase` in one world."""
    noise, hits, repeats = 0.3**2, 0, 300
    true = 1 / np.sqrt((1 + noise) * (2 + noise))
    for seed in range(repeats):
        rng = RNG(seed)
        centre, level = rng.normal(0, 1, (2, n_configurations, 1))
        x = (centre + rng.normal(0, 0.3, (n_configurations, 5))).ravel()
        y = (centre + level + rng.normal(0, 0.3, (n_configurations, 5))).ravel()
        names = np.repeat(np.arange(n_configurations), 5)

        def r(i, x=x, y=y):
            return np.corrcoef(x[i], y[i])[0, 1]

        low, high, _ = cluster_interval(names, r, rng, 400)
        hits += low <= true <= high
    assert hits >= 0.93 * repeats


def test_the_published_r_stands_beside_pearsons_only():
    table = correlate.correlations(made_points(4, 3), 100)
    beside = dict(table.select("coefficient", "published").rows())
    assert beside["Pearson r"] == -0.328
    assert all(value is None for name, value in beside.items() if name != "Pearson r")
    assert table.filter(coefficient="leave one configuration out")["low"][0] is not None


def test_a_constant_statistic_is_said_and_is_no_number():
    table = correlate.correlations(made_points(4, 3, constant=True), 100)
    assert table["value"].null_count() == len(table) == 7
    notes = table["note"].to_list()
    assert all("undefined: the statistic is constant" in note for note in notes[:4])
    rows = correlate.sheet(table).rows
    assert not any("nan" in cell.lower().replace("undefined", "") for row in rows for cell in row)


def test_within_a_width_the_widths_do_not_count():
    """Over two widths y rises with x, in either it falls."""
    points = made_points(12, 3, slope=-2.0).with_columns(
        hidden_size=pl.when(pl.col("run").str.ends_with("1")).then(64.0).otherwise(32.0)
    )
    shift = 20 * (pl.col("hidden_size") == 64)
    mixed = points.with_columns(pl.col("x") + shift, pl.col("y") + shift)
    tables = (correlate.correlations(p, 100) for p in (points, mixed))
    one, both = (dict(table.select("coefficient", "value").rows()) for table in tables)
    assert both["Pearson r"] > 0.5 and both[correlate.OF_WIDTH] < -0.5
    assert both[correlate.OF_WIDTH] == pytest.approx(one[correlate.OF_WIDTH])


def test_the_places_of_a_seed_are_one_point_of_the_mixed_model():
    points = made_points(6, 5, slope=0.3)
    places = pl.concat([points, points.with_columns(pl.lit("1").alias("place"), pl.col("x") + 0.1)])
    one, two = (
        correlate.correlations(p, 10).row(by_predicate=pl.col("coefficient") == correlate.MIXED)
        for p in (points, places)
    )
    at = correlate.correlations(points, 10).columns.index("value")
    np.testing.assert_allclose(one[at : at + 3], two[at : at + 3], rtol=1e-6)
    alone = correlate.correlations(made_points(6, 1), 10).filter(coefficient=correlate.MIXED)
    assert alone["value"][0] is None and "fewer than two seeds" in alone["note"][0]


def test_few_configurations_have_no_interval_and_it_is_said():
    table = correlate.correlations(made_points(2, 4), 100)
    row = table.filter(coefficient="Pearson r").to_dicts()[0]
    note = "no interval: 2 configurations, expected at least 3"
    assert row["low"] is None and row["note"] == note
    one = correlate.correlations(made_points(1, 1), 100)
    assert one["value"].null_count() == len(one)
    assert "1 distinct point, expected at least 3" in one["note"][0]


def test_three_seeds_of_one_configuration_have_no_interval():
    """Two points give r = ±1 in a draw; in simulations such an interval covered 0 in 66 %."""
    for n_seeds, note in ((3, "no interval: 3 points, expected at least 4"), (4, "")):
        table = correlate.correlations(made_points(1, n_seeds), 100)
        row = table.filter(coefficient=correlate.WITHIN).to_dicts()[0]
        assert row["value"] is not None and (row["low"] is None) is bool(note)
        assert row["note"] == note or not note


def test_one_configuration_or_two_distinct_points_have_no_r():
    one = correlate.correlations(made_points(1, 4), 100)
    assert one.drop_nulls("value")["coefficient"].to_list() == [correlate.WITHIN]
    assert one["note"][0] == "not computed: 1 configuration, expected at least 2"
    twice = pl.concat([made_points(2, 1)] * 3)
    table = correlate.correlations(twice, 100)
    assert table["value"].null_count() == len(table)
    assert table["note"][0] == "undefined: 2 distinct points, expected at least 3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("correlate")
    plain_run(path / "none")
    plain_run(path / "early", "early", better=0.05, seed=1)
    plain_run(path / "stack", "stack", better=0.1, seed=2)
    plain_run(path / "wide", "early", seed=3, model__d_embed=64)
    return find_runs(str(path))[0]


def test_points_are_seeds_at_places(runs):
    points = correlate.points_of(runs)
    assert len(points) == (3 + 2 * 3 + 3) * 2
    row = points.filter(run="stack", place="1", domain="B", seed=2).to_dicts()[0]
    seeds = next(r for r in runs if r.name == "stack").seeds()
    assert row["x"] == pytest.approx(0.3) and row["progress"] == 0.75
    assert row["y"] == seeds["test/B/ndcg@10/uni99"][2]
    full = correlate.points_of(runs, metric="mrr/full").filter(run="stack", place="1", seed=2)
    assert full.filter(domain="A")["y"][0] == seeds["test/A/mrr/full"][2]
    assert len(correlate.points_of(runs, points="mean")) == 3 * 3 * 2


def test_the_width_is_a_covariate_and_a_configuration(runs):
    points = correlate.points_of(runs)
    assert points["configuration"].n_unique() == 3
    assert set(points["hidden_size"]) == {32.0, 64.0}


def test_a_statistic_of_the_probes_is_found_in_their_table(runs):
    row = {"run": "early", "seed": 1, "parameters": "best", "split": "test", "step": 3}
    row |= {"place": 0, "domain": "A", "statistic": "r2_x", "value": 0.75}
    measured = pl.DataFrame([row, row | {"parameters": "init", "value": 0.1}])
    points = correlate.points_of(runs, "r2_x", measured=measured)
    assert points.select("run", "seed", "domain", "x").rows() == [("early", 1, "A", 0.75)]


def test_a_statistic_that_is_named_twice_counts_once(runs, tmp_path):
    for asked in (["abs_cos"], ["abs_cos", "abs_cos"]):
        options = SimpleNamespace(metric="ndcg@10", statistic=asked, points="mean", draws=100)
        correlate.section(runs, tmp_path, options)
        assert len(pl.read_parquet(tmp_path / "correlate_points.parquet")) == 3 * 3 * 2


def test_nothing_to_correlate_is_said(runs, tmp_path):
    baseline = [run for run in runs if not run.places]
    assert "no finished run with GCA" in correlate.missing(baseline, correlate.points_of(baseline))
    plain_run(tmp_path / "open", "early", finished=False)
    unfinished = [read_run(tmp_path / "open")]
    assert "no finished run" in correlate.missing(unfinished, correlate.points_of(unfinished))
    nothing = correlate.points_of(runs, "no_such_statistic")
    assert "both the statistic and the metric" in correlate.missing(runs, nothing)


def test_figures_name_what_they_show(runs):
    points = correlate.points_of(runs)
    table = correlate.correlations(points, 100)
    (figure,) = correlate.draw(points, table, "ndcg@10").values()
    left, right = figure.axes
    assert (
        "|cos(X, X′)|" in left.get_xlabel() and right.get_ylabel() == "test ndcg@10/uni99, domain B"
    )
    labels = left.get_legend_handles_labels()[1]
    assert {"early, place 0", "stack, place 1", "null: independent directions (0.142)"} <= set(
        labels
    )
    far = points.with_columns(pl.col("x") + 5)
    (other,) = correlate.draw(far, correlate.correlations(far, 100), "mrr").values()
    labels = other.axes[0].get_legend_handles_labels()[1]
    assert "null: independent directions (0.142, left of the axis)" in labels
    assert other.axes[0].get_xlim()[0] > 4
    assert "paper" not in figure.get_label()  # the synthetic pair is not the paper's
    beside = points.with_columns(published=pl.lit(-0.328))
    (figure,) = correlate.draw(beside, correlate.correlations(beside, 100), "ndcg@10").values()
    assert "paper −0.328" in figure.axes[0].get_title("left") and "paper" in figure.get_label()


def test_partial_r_needs_three_more_configurations_than_covariates():
    """Two covariates are constant in a configuration: three of them covered 0.80 of the time."""
    few = correlate.correlations(made_points(3, 5), 100).filter(coefficient="partial r")
    assert few["value"][0] is None and few["low"][0] is None
    assert few["note"][0] == (
        "not computed: 3 configurations, expected at least 5, 3 more than covariates"
    )
    enough = correlate.correlations(made_points(6, 5), 100).filter(coefficient="partial r")
    assert enough["value"][0] is not None and enough["low"][0] is not None


@pytest.mark.slow
def test_the_interval_of_partial_r_covers_from_there_on():
    """Independent x and y in six configurations: the true partial r is 0."""
    hits, repeats = 0, 100
    for seed in range(repeats):
        part = made_points(6, 4, seed, slope=0.0)
        x, y, c = (part.select(names).to_numpy() for names in ("x", "y", correlate.COVARIATES))

        def measure(i, x=x[:, 0], y=y[:, 0], c=c):
            return statistics.partial(x[i], y[i], c[i])

        low, high, _ = cluster_interval(part["configuration"], measure, RNG(seed), 100)
        hits += low <= 0 <= high
    assert hits >= 0.93 * repeats


def test_gates_of_different_activation_are_never_pooled(tmp_path):
    plain_run(tmp_path / "a", "early", gated=0.6)
    plain_run(tmp_path / "b", "early", gated=0.6, gca__gate_act="tanh")
    runs = find_runs(str(tmp_path))[0]
    assert runs[0].setting == runs[1].setting
    table = correlate.correlations(correlate.points_of(runs, "gated_abs_cos"), 100)
    assert table["points"].unique().to_list() == [3]
    settings = table["setting"].unique().sort().to_list()
    assert [s.split(" · ")[-1] for s in settings] == ["sigmoid gate", "tanh gate"]
    assert any(
        "tanh gate: the angle of the raw X′ is arbitrary" in w for w in angles.warnings(runs)
    )


def test_the_gated_angle_is_first_and_older_runs_have_none_until_it_is_measured(tmp_path):
    new = plain_run(tmp_path / "new", "early", gated=0.6)
    old = read_run(plain_run(tmp_path / "old", "early", first_seed=3, gated=""))
    both = find_runs(str(tmp_path))[0]
    points = correlate.points_of(both, "gated_abs_cos")
    assert set(points["run"]) == {"new"} and set(points["x"]) == {0.6}
    signed = correlate.points_of([read_run(new)], "gated_cos_abs")
    assert set(signed["x"]) == {0.6} and signed["null"].null_count() == 0  # of mean cos −0.6
    assert [run.problems for run in both if run.name == "new"] == [()]
    assert old.problems[0].startswith("old: of an older version, without the angle of α ⊙ X′")
    correlate.check_statistics([old], correlate.STATISTICS, None)
    measured = measured_of([old], statistic="gated_abs_cos", value=0.4, seed=3)
    found = correlate.points_of(both, "gated_abs_cos", measured=measured).filter(run="old")
    assert found["x"].to_list() == [0.4]


def measured_of(runs, **fields):
    """The frame that `orthogonality` leaves of these runs: one statistic of one seed."""
    lead = {"seed": 0, "parameters": "best", "split": "test", "step": 3, "place": 0, "domain": "A"}
    lead |= {"statistic": "shuffled_abs_cos", "value": 0.25} | fields
    return pl.DataFrame([{"run": run.name, "digest": run.digest} | lead for run in runs])


def test_the_page_shows_the_best_parameters_on_test_users_of_its_own_runs(tmp_path):
    plain_run(tmp_path / "a" / "early", "early")
    plain_run(tmp_path / "b" / "early", "early", gca__gate_act="tanh")  # of the same name
    (mine,), (other,) = (find_runs(str(tmp_path / name))[0] for name in "ab")
    lack = "distributions and subspaces: `orthogonality` has not measured the best parameters"
    for runs, fields in (
        ([mine], {"split": "val"}),
        ([mine], {"parameters": "last"}),
        ([other], {}),
    ):
        output.write_frame(tmp_path, "orthogonality", measured_of(runs, **fields))
        section = angles.section([mine], tmp_path, None)
        assert len(section.sheets) == 1 and section.missing[0].startswith(lack)
    both = [measured_of([mine]), measured_of([mine], split="val", value=0.75)]
    output.write_frame(tmp_path, "orthogonality", pl.concat(both))
    section = angles.section([mine], tmp_path, None)
    assert "0.250" in section.sheets[1].rows[0] and not section.missing


def test_both_statistics_stand_beside_their_own_null(tmp_path):
    runs = [read_run(plain_run(tmp_path / "new", "early", gated=0.6))]
    frame = angles.angles(runs)
    sheet = angles.sheet(frame)
    assert [row[3] for row in sheet.rows] == ["X′", "α ⊙ X′"] * 2
    row = dict(
        zip(
            sheet.header[:4] + sheet.header[8:11],
            sheet.rows[0][:4] + sheet.rows[0][8:11],
            strict=True,
        )
    )
    assert row["|mean cos|: untrained"] == "0.140 ± 0.000"  # its null is the untrained model
    (figure,) = angles.draw(frame, runs).values()
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == [
        f"{kind} of X and α ⊙ X′" for kind in ("mean |cos|",) * 2 + ("|mean cos|",) * 2
    ]
