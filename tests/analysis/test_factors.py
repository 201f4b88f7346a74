"""One change at a time: which runs are compared, and by how much the angle moves."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from analysis import differences, factors
from analysis.runs import find_runs
from tests.analysis._plain import plain_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two gates at two widths (with a feed-forward width that follows), and a baseline. tanh lowers
    the angle by 0.3 at both, 16 raises it by 0.1; one run has another source at the usual width."""
    folder = tmp_path_factory.mktemp("factors")
    plain_run(folder / "none")
    for act, width, source in (
        *((act, width, "merged") for act in ("sigmoid", "tanh") for width in (32, 16)),
        ("sigmoid", 32, "self"),
    ):
        gated = 0.6 - 0.3 * (act == "tanh") + 0.1 * (width == 16)
        sizes = {"model__d_embed": width, "model__d_ffn": 3 * width}
        gca = {"gca__gate_act": act, "gca__source": source, "gated": gated}
        plain_run(folder / f"{act}-{width}-{source}", "early", **sizes, **gca)
    return find_runs(str(folder))[0]


def of_gca(runs):
    return [run for run in runs if run.places]


def test_runs_are_compared_that_differ_in_one_field(runs):
    found = {}
    for (run,), (twin,), *what in factors.pairs(of_gca(runs)):
        found[run.name, twin.name] = what
    narrow = "d_embed: 32 → 16 (with d_ffn)"
    assert found == {
        ("tanh-32-merged", "sigmoid-32-merged"): ["gate_act: sigmoid → tanh", ""],
        ("tanh-16-merged", "sigmoid-16-merged"): ["gate_act: sigmoid → tanh", "d_embed=16"],
        ("sigmoid-16-merged", "sigmoid-32-merged"): [narrow, ""],
        ("tanh-16-merged", "tanh-32-merged"): [narrow, "gate_act=tanh"],
        ("sigmoid-32-self", "sigmoid-32-merged"): ["source: merged → self", ""],
    }
    others = [more for *_, more in factors.pairs(of_gca(runs))]
    assert others == sorted(others, key=bool)  # those alone come first


def test_a_field_that_older_runs_lack_is_no_difference(runs):
    old = of_gca(runs)[0]
    config = {**old.config, "model": {k: v for k, v in old.config["model"].items() if k != "tied"}}
    changed = [dataclasses.replace(old, config=config), *of_gca(runs)[1:]]
    assert [what for *_, what, _ in factors.pairs(changed)] == [
        what for *_, what, _ in factors.pairs(of_gca(runs))
    ]


def test_what_an_older_run_lacks_is_the_default_of_today_not_what_most_have(tmp_path):
    """Most runs share negatives in a sequence; an older version knew no such field and did not."""
    for k in range(2):
        fields = {"gca__heads": 4 * k, "train__negatives": "per_sequence"}
        plain_run(tmp_path / f"new{k}", "early", **fields)
    file = plain_run(tmp_path / "old", "early") / "config.json"
    config = json.loads(file.read_text())
    del config["train"]["negatives"]
    file.write_text(json.dumps(config))
    values, usual = differences.differing_fields(find_runs(f"{tmp_path}/new*,{tmp_path}/old")[0])
    assert values["train.negatives"] == ['"per_sequence"'] * 2 + ['"per_position"']
    assert usual["train.negatives"] == '"per_sequence"'


def test_seeds_of_one_configuration_are_put_together(tmp_path):
    for name, act, first in (
        ("a", "sigmoid", 0),
        ("b", "sigmoid", 3),
        ("c", "tanh", 0),
        ("d", "tanh", 3),
    ):
        fields = {"gca__gate_act": act, "first_seed": first, "gated": 0.2 + 0.1 * (act == "tanh")}
        plain_run(tmp_path / name, "early", seed=first, **fields)
    frame = factors.effects(find_runs(str(tmp_path))[0])
    assert set(frame["seeds"]) == {6} and len(frame) == 2
    assert {tuple(r) for r in frame.select("run", "reference").rows()} == {("c, d", "a, b")}


def test_a_run_without_the_gated_angle_has_no_difference_in_it(tmp_path):
    """Never a raw angle beside the gated one of another run."""
    plain_run(tmp_path / "a", "early", gated="")
    plain_run(tmp_path / "b", "early", cosine=lambda *_: 0.1, gca__gate_act="tanh", gated=0.9)
    runs = find_runs(str(tmp_path))[0]
    frame = factors.effects(runs)
    assert frame["angle_by"].null_count() == 2 and frame["mean_cos_by"].null_count() == 0
    section = factors.section(runs, tmp_path, SimpleNamespace(metric="ndcg@10"))
    (figure,) = section.figures.values()
    assert figure.axes[0].get_xlabel() == "difference in mean |cos(X, α ⊙ X′)|"


def test_differences_are_of_paired_seeds(runs):
    frame = factors.effects(runs)
    assert len(frame) == 2 * 5 and set(frame["seeds"]) == {3}
    for row in frame.iter_rows(named=True):
        by = {"gate": -0.3, "d_em": 0.1, "sour": 0.0}[row["change"][:4]]
        assert row["angle_by"] == pytest.approx(by) == row["angle"] - row["angle_from"]
        assert row["angle_low"] == pytest.approx(by) == row["angle_high"]  # alike in all seeds
        assert row["quality_low"] <= row["quality_by"] <= row["quality_high"]
    seeds = {run.name: run.seeds()["test/A/ndcg@10/uni99"].to_numpy() for run in runs}
    (row,) = frame.filter(change="source: merged → self", domain="A").to_dicts()
    difference = seeds[row["run"]] - seeds[row["reference"]]
    assert row["quality_by"] == pytest.approx(difference.mean())
    half = 4.3027 * difference.std(ddof=1) / 3**0.5  # Student's t with two degrees of freedom
    assert row["quality_high"] - row["quality_by"] == pytest.approx(half, rel=2e-3)


def test_runs_of_another_setting_are_not_paired(runs):
    """Another backbone, protocol, ranking or data, which would each be one field that differs."""
    run = next(run for run in runs if run.name == "sigmoid-32-merged")
    few = run.config["evaluate"] | {"n_negatives": 9}
    fields = {"backbone": "cdsrnp"}, {"protocol": "corrected"}, {"evaluate": few}
    others = [dataclasses.replace(run, config=run.config | change) for change in fields]
    others.append(dataclasses.replace(run, env=run.env | {"fingerprints": {"data": "other"}}))
    for other in others:
        assert factors.pairs([run, other]) == []
    wide = next(run for run in runs if run.name == "sigmoid-16-merged")
    assert len(factors.pairs([run, wide, *others])) == 1


def test_the_figure_has_a_line_for_each_change(runs):
    ((name, figure),) = factors.draw(factors.effects(runs)).items()
    axis = figure.axes[0]
    assert name.startswith("factors_abxi_") and len(axis.get_yticklabels()) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "all else as usual, 95 %",
        "with another change",
    ]


def test_nothing_to_compare_is_said(runs, tmp_path):
    options = SimpleNamespace(metric="ndcg@10")
    alone = [run for run in runs if run.name in ("none", "sigmoid-32-merged")]
    assert not factors.applies(alone, options) and factors.applies(runs, options)
    section = factors.section(alone, tmp_path, options)
    assert section.missing == ["no two runs with GCA of one setting differ in one field alone"]
    assert "10 comparisons" in factors.section(runs, tmp_path, options).short


def test_without_the_ranking_there_is_no_difference(runs, tmp_path):
    options = SimpleNamespace(metric="ndcg@10/uni99")
    other = [dataclasses.replace(run) for run in runs]
    frame = factors.effects(other, "ndcg@10/official100")
    assert frame["angle_by"].null_count() == len(frame)
    assert factors.section(other, tmp_path, options).lines == []
