"""Curves over training are those of metrics.jsonl, unfinished runs included."""

import types

import polars as pl
import pytest

from analysis import trajectory
from analysis.runs import find_runs
from tests.analysis._plain import plain_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("trajectory")
    plain_run(path / "none")
    plain_run(path / "stack", "stack", finished=False)
    return find_runs(str(path))[0]


def test_every_row_of_the_file_is_there(runs):
    frame = trajectory.trajectories(runs)
    for run in runs:
        epochs = run.epochs()
        mine = frame.filter(run=run.name, quantity="val/ndcg@10/uni99", domain="B")
        expected = epochs.select("seed", "epoch", "val/B/ndcg@10/uni99").sort("seed", "epoch")
        assert mine.select("seed", "epoch", "value").sort("seed", "epoch").rows() == expected.rows()
    angles = frame.filter(quantity="abs_cos")
    assert set(angles["run"]) == {"stack"} and set(angles["place"]) == {"0", "1"}
    assert frame["best_epoch"].unique().to_list() == [3]


def test_the_summary_is_first_highest_last_over_seeds(runs):
    row = (
        trajectory.summary(trajectory.trajectories(runs))
        .filter(place="1", domain="A")
        .to_dicts()[0]
    )
    # |cos| rises from 0.14 to 0.20, 0.25, 0.30 in three seeds.
    assert row["first"] == pytest.approx(0.14) and row["last"] == pytest.approx(0.25)
    assert row["highest"] == pytest.approx(0.25) and row["epoch_of_highest"] == 4


def test_measured_checkpoints_join_with_their_source(runs):
    base = {"run": "stack", "seed": 1, "split": "test", "place": 1, "domain": "A"}
    measured = pl.DataFrame(
        [
            base | {"parameters": kind, "step": step, "statistic": "r2_x", "value": value}
            for kind, step, value in (("init", 0, 0.5), ("kept", 2, 0.7), ("best", 3, 0.9))
        ]
    )
    found = trajectory.trajectories(runs, measured).filter(quantity="r2_x").sort("epoch")
    assert found.select("epoch", "value", "source").rows() == [
        (0, 0.5, "checkpoint, test"),
        (2, 0.7, "checkpoint, test"),
    ]
    only_best = measured.filter(pl.col("parameters") != "kept")
    assert trajectory.trajectories(runs, only_best).filter(quantity="r2_x").is_empty()


def test_nothing_to_draw_is_said(tmp_path, runs):
    path = plain_run(tmp_path / "empty")
    (path / "metrics.jsonl").unlink()
    frame = trajectory.trajectories(find_runs(str(path))[0])
    assert frame.is_empty() and trajectory.draw(frame, runs) == {}
    section = trajectory.section(find_runs(str(path))[0], tmp_path, None)
    assert "no trajectory" in section.missing[0]
    options = types.SimpleNamespace(metric="ndcg@10")
    section = trajectory.section([run for run in runs if not run.places], tmp_path, options)
    assert section.missing == ["no run with GCA: no angle over training"] and not section.sheets
    assert not trajectory.section(runs, tmp_path, options).missing


def test_the_figure_draws_metric_angle_and_null(runs):
    (figure,) = trajectory.draw(trajectory.trajectories(runs), runs).values()
    assert len(figure.axes) == 4
    labels = figure.axes[2].get_legend_handles_labels()[1]
    assert "stack, place 1" in labels and "null: independent directions, d = 32" in labels
    assert figure.axes[0].get_ylabel() == "validation ndcg@10/uni99"
    assert figure.axes[2].get_xlabel() == "epoch"
    assert all(float(tick).is_integer() for tick in figure.axes[2].get_xticks())


def test_the_figure_takes_the_ranking_that_training_watched(runs):
    frame = trajectory.trajectories(runs)
    watched = frame.with_columns(pl.col("quantity").str.replace("/uni99", "/official99"))
    for metric in ("ndcg@10", "ndcg@10/full"):
        (figure,) = trajectory.draw(watched, runs, metric).values()
        assert figure.axes[0].get_ylabel() == "validation ndcg@10/official99"
        assert len(figure.axes[0].lines) == 2 * (1 + 3 * 2)  # mean; line and ring of each seed
    (figure,) = trajectory.draw(frame, runs, "auc").values()
    assert figure.axes[0].get_ylabel() == "validation auc: none" and not figure.axes[0].lines
