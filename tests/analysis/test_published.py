"""The published values are complete, consistent, and those of the collected sources."""

import json

import pytest

from analysis import published


def test_tables_are_found_by_the_names_of_runs():
    table = published.table1("abxi", "beauty_elec")
    assert set(table) == {"baseline", "early", "stack"}
    assert table["stack"]["A/ndcg@10"] == (0.1846, 0.0057)
    assert published.table1("cdsrnp", "elec_phone")["baseline"]["B/ndcg@10"][0] == 0.1935
    assert published.table1("abxi", "synthetic") == {}


def test_the_rs_are_all_there():
    found = {
        (m, d): published.correlation(m, d)["r"]
        for m in ("llm4cdsr", "abxi", "cdsrnp")
        for d in "AB"
    }
    assert found == {
        **{("llm4cdsr", "A"): -0.008, ("llm4cdsr", "B"): -0.452},
        **{("abxi", "A"): -0.328, ("abxi", "B"): -0.340},
        **{("cdsrnp", "A"): 0.537, ("cdsrnp", "B"): -0.296},
    }
    assert published.correlation("toy", "A") is None


def test_every_part_says_where_it_comes_from():
    paper = published.paper()
    for name, part in paper.items():
        if name != "paper":
            assert len(part["source"]) > 30, name
    assert len(paper["table1"]["rows"]) == 15 and len(paper["ablation"]["rows"]) == 10
    assert len(paper["model_comparison"]["series"]) == 30


def test_first_points_are_table_1_but_for_the_errors_that_are_named():
    wrong = []
    for series in published.paper()["model_comparison"]["series"]:
        plain = series["dataset"].split(" (")[0].lower().replace("-", "_")
        table = published.table1(series["model"], plain)[series["variant"]]
        if abs(table[f"{series['domain']}/ndcg@10"][0] - series["points"][0][1]) > 2e-4:
            wrong.append((series["model"], series["domain"], series["variant"]))
    assert wrong == [
        ("CDSRNP", "A", "stack"),
        ("ABXI", "A", "baseline"),
        ("ABXI", "B", "baseline"),
    ]


def test_values_are_those_of_the_collected_sources(shared_file):
    tables = json.loads(shared_file("paper", "paper_tables.json").read_text())
    for mine, theirs in zip(
        published.paper()["table1"]["rows"], tables["table1"]["rows"], strict=True
    ):
        assert mine["ndcg10_B"] == [theirs["ndcg10_B"]["mean"], theirs["ndcg10_B"]["std"]]
    figures = json.loads(shared_file("paper", "paper_figures.json").read_text())
    drawn = figures["model_comparison"]["abxi_afk"]["A"]["gca_early"]
    mine = [
        series["points"]
        for series in published.paper()["model_comparison"]["series"]
        if (series["dataset"], series["domain"], series["variant"]) == ("Food-Kitch", "A", "early")
    ]
    assert mine == [drawn]


@pytest.mark.parametrize("name", ["none", "early", "stack"])
def test_summaries_of_our_own_runs_are_whole(name):
    path = "analysis/published/abxi_beauty_elec_small"
    root = published.pathlib.Path(published.__file__).parents[2]
    summary = json.loads((root / path / f"{name}.json").read_text())
    assert summary["n_seeds"] == 5 and len(summary["per_seed"]) == 5
