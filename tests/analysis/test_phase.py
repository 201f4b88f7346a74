"""Phase diagrams: which runs are one kind, whose gain stands in which cell, what is missing."""

import json

import polars as pl
import pytest

from analysis import phase, table
from analysis.runs import find_runs
from oa_jax.errors import UserError
from tests.analysis._plain import plain_run

X, Y = "data.world.redundancy", "model.d_embed"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two worlds, two widths (with a feed-forward width that follows), two sources; the source
    `self` at one width alone. At redundancy 0 GCA gains, and its angle is smaller."""
    folder = tmp_path_factory.mktemp("phase")
    for rho in (0.0, 1.0):
        for width in (16, 32):
            world = {"data__world__redundancy": rho, "model__d_embed": width}
            world |= {"model__d_ffn": 3 * width, "fingerprint": f"world{rho:g}"}
            plain_run(folder / f"none-{rho:g}-{width}", **world)
            for source in ("merged", "self"):
                if source == "self" and width == 16:
                    continue
                better = 0.2 * (rho == 0 and source == "merged")
                name = folder / f"early-{source}-{rho:g}-{width}"
                of_gca = {"gca__source": source, "gated": 0.3 if better else 0.6}
                plain_run(name, "early", better, seed=1, **world, **of_gca)
    return find_runs(str(folder))[0]


def test_a_field_that_follows_makes_no_kind(runs):
    chosen = [run for run in runs if run.places]
    found = phase.kinds(chosen, X, Y)
    assert set(found.values()) == {"early", "early, source=self"}
    assert all(("self" in name) == ("source=self" in kind) for name, kind in found.items())
    # Without the width as an axis, the widths are kinds.
    assert "d_embed=16" in " ".join(phase.kinds(chosen, X, "gca.heads").values())


def test_stacks_of_different_places_are_kinds_of_their_own(tmp_path):
    for places in ("stack", "1-2", "0-1-2"):
        plain_run(tmp_path / places, places)
    found = phase.kinds(find_runs(str(tmp_path))[0], X, Y)
    assert found == {"stack": "stack", "1-2": "GCA[1,2]", "0-1-2": "GCA[0,1,2]"}


@pytest.mark.parametrize("paired", [False, True])
def test_cells_hold_the_gains_of_the_table_and_the_angles(runs, paired):
    frame, notes = phase.cells(runs, X, Y, draws=200, pair_seeds=paired)
    assert len(frame) == 2 * 6 and not notes
    gains = table.gains(runs, metrics=("ndcg@10",), draws=200, pair_seeds=paired)[0]
    for row in frame.iter_rows(named=True):
        same = gains.filter(run=row["run"], domain=row["domain"], ranking="uni99")
        assert all(row[name] == same[name][0] for name in ("gain", "low", "high"))
        assert row["low"] <= row["gain"] <= row["high"]
        assert row["baseline"] == f"none-{float(row['x']):g}-{row['y']}"
        good = row["x"] == "0.0" and row["kind"] == "early"
        assert (row["low"] > 0) == good
        assert row["angle"] == pytest.approx(0.3 if good else 0.6)


def test_what_orthogonality_measured_stands_beside(runs):
    run = next(run.name for run in runs if run.places)
    lead = {"run": run, "split": "test", "step": 7, "place": "0"}
    values = {("A", "best", 0): 0.2, ("A", "best", 1): 0.4, ("A", "init", 0): 0.9}
    measured = pl.DataFrame(
        [
            lead | {"domain": d, "parameters": of, "seed": seed, "statistic": statistic, "value": v}
            for (d, of, seed), v in values.items()
            for statistic in ("gated_centred_abs_cos", "gated_abs_cos")
        ],
        strict=False,
    )
    other = measured.with_columns(split=pl.lit("val"), value=pl.lit(0.8))
    measured = pl.concat([measured, other])
    frame, _ = phase.cells(runs, X, Y, draws=100, measured=measured)
    (row,) = frame.filter(run=run, domain="A").to_dicts()
    assert row["centred"] == pytest.approx(0.3) and row["shuffled"] is None
    assert frame.filter(pl.col("run") != run)["centred"].null_count() == len(frame) - 2
    assert phase.cells(runs, X, Y, draws=100)[0]["centred"].null_count() == len(frame)


def test_a_kind_with_one_value_of_an_axis_has_no_diagram(runs, tmp_path):
    class options:
        x, y, metric, draws, pair_seeds = X, Y, "ndcg@10", 200, False

    section = phase.section(runs, tmp_path, options)
    (name,) = section.figures
    assert name == "phase_early" and not section.missing
    texts = [text.get_text() for axis in section.figures[name].axes for text in axis.texts]
    assert len(texts) == 2 * 2 * 4  # quantities, domains, cells
    labels = [axis.get_ylabel() for axis in section.figures[name].axes]
    assert labels == [Y] * 4 + ["gain in ndcg@10", "mean |cos(X, α ⊙ X′)|"]  # the bars come last
    bold = [
        t for axis in section.figures[name].axes for t in axis.texts if t.get_weight() == "bold"
    ]
    assert len(bold) == 2 * 2  # redundancy 0, of both domains and widths
    assert (tmp_path / "phase.csv").exists()
    assert phase.applies(runs, options)
    options.y = "gca.heads"
    assert not phase.applies(runs, options)
    assert phase.section(runs, tmp_path, options).missing[0].startswith("no two values")
    options.y = "model.width"
    with pytest.raises(UserError, match="--y=model.width: expected two fields"):
        phase.section(runs, tmp_path, options)


def test_the_order_of_kinds_is_that_of_one_world(tmp_path):
    """In either world the larger angle has the larger gain; pooled, the worlds would decide."""
    for synergy in (0.0, 0.5):
        for width in (16, 32):
            world = {"data__world__synergy": synergy, "model__d_embed": width}
            world |= {"model__d_ffn": 3 * width, "fingerprint": f"world{synergy:g}"}
            plain_run(tmp_path / f"none-{synergy:g}-{width}", **world)
            for hidden in range(1, 7):
                gated = 0.1 * hidden * (1 - synergy)
                fields = {"gca__gate_hidden": hidden, "gated": gated} | world
                name = tmp_path / f"early-{hidden}-{synergy:g}-{width}"
                plain_run(name, "early", 0.01 * hidden + synergy / 5, seed=1, **fields)

    class options:
        x, y, metric, draws, pair_seeds = X, Y, "ndcg@10", 100, False

    lines = phase.section(find_runs(str(tmp_path))[0], tmp_path / "out", options).lines
    assert len(lines) == 2 * 2 * 2 and all("over 6 kinds +1.00 [" in line for line in lines)
    assert sum(line.startswith("synergy=") for line in lines) == 4


def test_runs_of_one_configuration_are_one_kind(tmp_path):
    """Six have an order, and three in two runs each have not; of a cell the first is drawn."""
    kinds = [{"kind": f"{k}", "run": f"{k}", "angle": k / 10, "gain": k / 100} for k in range(6)]
    frame = pl.DataFrame([{"x": "0", "y": "1", "domain": "A"} | row for row in kinds])
    assert "over 6 kinds +1.00" in phase.orders(frame, 100)[0]
    assert phase.orders(frame.with_columns(kind=pl.Series(list("001122"))), 100) == []

    class options:
        x, y, metric, draws, pair_seeds = X, Y, "ndcg@10", 100, False

    for name, fields in (("a", {}), ("b", {"first_seed": 3}), ("wide", {"model__d_embed": 16})):
        plain_run(tmp_path / name, "early", gated=0.5, **fields)
    section = phase.section(find_runs(str(tmp_path))[0], tmp_path / "out", options)
    assert "a, b: several of one cell: the diagram has the first" in section.missing


def test_a_run_without_the_gated_angle_has_none_until_it_is_measured(tmp_path):
    """Never a raw angle beside the gated one of another run or of another user."""
    for name, fields in (("new", {"gated": 0.6}), ("old", {"gca__gate_act": "tanh", "gated": ""})):
        plain_run(tmp_path / name, "early", cosine=lambda *_: 0.2, **fields)
    lead = {"run": "new", "seed": 0, "parameters": "best", "split": "test", "place": 0, "step": 3}
    values = {"gated_shuffled_abs_cos": 0.5, "shuffled_abs_cos": 0.1}
    rows = [lead | {"domain": "A", "statistic": k, "value": v} for k, v in values.items()]
    runs = find_runs(str(tmp_path))[0]
    frame, _ = phase.cells(runs, X, Y, draws=100, measured=pl.DataFrame(rows))
    of_new = frame.filter(run="new", domain="A").to_dicts()[0]
    assert (of_new["angle"], of_new["shuffled"]) == (pytest.approx(0.6), 0.5)
    assert frame.filter(run="old")["angle"].null_count() == 2


def test_a_run_without_the_ranking_or_without_seeds_has_an_empty_cell(tmp_path):
    for name in ("none", "early"):
        plain_run(tmp_path / name, name, gated=0.5)
    path = plain_run(tmp_path / "lost", "early", gca__source="self")
    summary = json.loads((path / "summary.json").read_text())
    summary["per_seed"] = [one | {"diverged_step": 9} for one in summary["per_seed"]]
    (path / "summary.json").write_text(json.dumps(summary))
    runs = find_runs(str(tmp_path))[0]
    frame, notes = phase.cells(runs, X, Y, draws=100)
    assert frame.filter(run="lost")["gain"].null_count() == 2 and not notes
    frame, _ = phase.cells(runs, X, Y, "ndcg@10/official100", 100)
    assert frame["gain"].null_count() == frame["angle"].null_count() == 4
