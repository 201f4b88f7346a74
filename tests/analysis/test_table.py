"""Table 1: means, gains and their tests against the summaries and by hand, and its three forms."""

import json
import shutil
import types

import numpy as np
import polars as pl
import pytest

from analysis import correlate, figures, published, table
from analysis.runs import find_runs, read_run
from oa_jax.errors import UserError
from oa_jax.ranking.metrics import metrics_by_domain
from oa_jax.sheets import Sheet
from tests.analysis._plain import plain_run, ranks_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("table")
    plain_run(path / "none")
    plain_run(path / "early", "early", better=0.1, seed=1, n_parameters=2000)
    plain_run(path / "stack", "stack", better=0.2, seed=2, n_parameters=3000)
    plain_run(path / "wide", better=0.05, seed=3, model__d_embed=64, n_parameters=9000)
    return find_runs(str(path))[0]


NO_FLAGS = {"baseline": None, "pair_seeds": False, "groups": False}


@pytest.fixture(scope="module")
def frame(runs):
    found, notes = table.gains(runs, draws=300)
    assert notes == []
    return found


def of(frame, **which):
    return frame.filter(**which).to_dicts()[0]


def test_means_are_those_of_the_summaries(runs, frame):
    run = next(r for r in runs if r.name == "early")
    for domain, ranking, metric in (("A", "uni99", "ndcg@10"), ("B", "full", "auc")):
        values = run.seeds()[f"test/{domain}/{metric}/{ranking}"].to_numpy()
        row = of(frame, run="early", domain=domain, ranking=ranking, metric=metric)
        assert row["mean"] == pytest.approx(values.mean()) and row["seeds"] == 3
        assert row["sd"] == pytest.approx(values.std(ddof=1))
    assert len(frame) == 4 * 2 * 2 * len(table.METRICS)


def test_one_metric_by_its_name_and_an_unknown_one(runs, frame):
    found, _ = table.gains(runs, metrics="mrr", draws=300)
    means = ["run", "domain", "ranking", "mean", "gain", "p"]  # Holm runs over fewer
    assert found.select(means).equals(frame.filter(metric="mrr").select(means))
    for metrics, name in (("ndcg@7", "ndcg@7"), (["mrr", "ndcg@10/full"], "ndcg@10/full")):
        with pytest.raises(UserError, match=f"^--metrics={name}: expected some of ndcg@1, "):
            table.gains(runs, metrics=metrics)


def test_a_gain_is_the_difference_of_means_against_the_baseline_of_the_same_width(frame):
    row = of(frame, run="stack", domain="A", ranking="uni99", metric="mrr")
    base = of(frame, run="none", domain="A", ranking="uni99", metric="mrr")
    assert row["baseline"] == "none" and row["users"] == 20
    assert row["gain"] == pytest.approx(row["mean"] - base["mean"]) and row["gain"] > 0
    assert row["low"] < row["gain"] < row["high"] and row["mde"] > 0
    assert row["relative_gain"] == pytest.approx(row["gain"] / base["mean"])
    assert frame.filter(run="wide")["gain"].null_count() == len(frame.filter(run="wide"))


def test_another_baseline_may_be_named(runs):
    found, _ = table.gains(runs, "wide", ("auc",), 100)
    assert set(found.drop_nulls("gain")["run"]) == {"none", "early", "stack"}
    assert set(found.drop_nulls("gain")["baseline"]) == {"wide"}
    with pytest.raises(UserError, match="--baseline=nobody: no such run"):
        table.gains(runs, "nobody")


def test_holm_by_hand(frame):
    """The k-th smallest of n p-values times n - k + 1, never falling, at most 1."""
    known = frame.drop_nulls("p").sort("p")
    p, n = known["p"].to_numpy(), len(known)
    expected = np.minimum(np.maximum.accumulate(p * (n - np.arange(n))), 1)
    assert known["p_holm"].to_numpy() == pytest.approx(expected)
    assert n == 2 * 2 * 2 * len(table.METRICS)  # two variants, not the two baselines


def test_improvement_is_the_share_of_pairs_of_seeds(runs, frame):
    a, b = (next(r for r in runs if r.name == n).seeds() for n in ("early", "none"))
    column = "test/B/hr@10/full"
    pairs = [(x > y) + 0.5 * (x == y) for x in a[column].to_list() for y in b[column].to_list()]
    row = of(frame, run="early", domain="B", ranking="full", metric="hr@10")
    assert row["improvement"] == pytest.approx(np.mean(pairs))


def test_seeds_paired_agree_in_the_gain_and_differ_in_the_interval(tmp_path):
    """Runs whose seeds go together: pairing finds a gain that unpaired seeds hide."""
    seeds = np.arange(3)
    base = ranks_of(seeds)
    for slot, lift in enumerate((0, 30, 60)):  # seeds differ much, alike in both runs
        for name in ("test/full/rank", "val/full/rank"):
            base[name][slot] = np.clip(base[name][slot] + lift, 1, 499)
    better = {k: v.copy() for k, v in base.items()}
    better["test/full/rank"] = np.maximum(better["test/full/rank"] - 5, 1)
    plain_run(tmp_path / "none", ranks=base)
    plain_run(tmp_path / "early", "early", ranks=better)
    runs = find_runs(str(tmp_path))[0]
    rows = [
        of(
            table.gains(runs, None, ("auc",), 300, paired)[0],
            run="early",
            domain="A",
            ranking="full",
        )
        for paired in (False, True)
    ]
    assert rows[0]["gain"] == pytest.approx(rows[1]["gain"])
    widths = [row["high"] - row["low"] for row in rows]
    assert widths[1] < 0.3 * widths[0]
    assert rows[1]["low"] > 0 > rows[0]["low"]


def with_groups(path, masks):
    """Give a plain run sets of users, as a backbone that has them."""
    ranks = dict(np.load(path / "ranks.npz"))
    summary = json.loads((path / "summary.json").read_text())
    for slot, entry in enumerate(summary["per_seed"]):
        for ranking in ("uni99", "full"):
            key = f"test/{ranking}"
            counts = [ranks[f"{key}/{n}"][slot] for n in ("rank", "ties")]
            counts.append(ranks[f"{key}/n_candidates"])
            found = metrics_by_domain(*counts, ranks["test/domain"], 0.0, ranking, masks)
            entry.update({f"test/{name}": value for name, value in found.items()})
    (path / "summary.json").write_text(json.dumps(summary))
    np.savez(path / "ranks.npz", **ranks, **{f"test/in/{n}": mask for n, mask in masks.items()})


def test_groups_have_means_and_gains_of_their_own(tmp_path):
    users = np.arange(40)
    for name in ("none", "early"):
        plain_run(tmp_path / name, name, better=0.1 * (name == "early"), seed=len(name))
        with_groups(tmp_path / name, {"all": users >= 0, "single": users < 11})
    runs = find_runs(str(tmp_path))[0]
    found, notes = table.gains(runs, draws=100, metrics=("mrr",), groups=True)
    assert notes == []
    assert found["domain"].unique(maintain_order=True).to_list() == ["A", "B", "all", "single"]
    values = {name: dict(np.load(tmp_path / name / "ranks.npz")) for name in ("none", "early")}
    means = {k: (1 / v["test/uni99/rank"][:, :11]).mean() for k, v in values.items()}
    row = of(found, run="early", domain="single", ranking="uni99")
    assert row["mean"] == pytest.approx(means["early"]) and row["users"] == 11
    assert row["gain"] == pytest.approx(means["early"] - means["none"])
    assert of(found, run="early", domain="all", ranking="full")["users"] == 40
    without, _ = table.gains(runs, draws=100, metrics=("mrr",))
    assert without["domain"].unique().sort().to_list() == ["A", "B"]


def test_groups_without_their_users_have_means_alone(tmp_path):
    for name in ("none", "early"):
        path = plain_run(tmp_path / name, name)
        with_groups(path, {"single": np.arange(40) < 11})
        ranks = dict(np.load(path / "ranks.npz"))
        del ranks["test/in/single"]
        np.savez(path / "ranks.npz", **ranks)
    found, notes = table.gains(find_runs(str(tmp_path))[0], None, ("mrr",), 100, groups=True)
    row = of(found, run="early", domain="single", ranking="full")
    assert row["mean"] is not None and row["gain"] is None
    assert any("no array 'test/in/single'" in note for note in notes)


def test_only_users_in_common_are_compared_and_it_is_said(tmp_path):
    plain_run(tmp_path / "none")
    ranks = ranks_of(np.arange(3), seed=1)
    ranks["test/user"] = ranks["test/user"] + 10
    plain_run(tmp_path / "early", "early", ranks=ranks)
    found, notes = table.gains(find_runs(str(tmp_path))[0], draws=100, metrics=("auc",))
    assert found.drop_nulls("gain")["users"].unique().to_list() == [15]
    assert "early and none: 15 test users of A in common: only these are compared" in notes


def with_rank(change):
    return lambda ranks: ranks | {"test/uni99/rank": change(ranks["test/uni99/rank"])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: ranks_of(np.arange(3), better=0.3, seed=9), "not of one run"),
        (lambda ranks: ranks | {"seed": ranks["seed"][::-1]}, "not of one run"),
        (with_rank(lambda rank: -rank), "expected rank >= 1"),
        (with_rank(lambda rank: rank * np.nan), "rank nan"),
        (with_rank(lambda rank: rank[0]), "not of one run"),
        (lambda ranks: ranks | {"test/user": ranks["test/user"][::-1]}, "no ascending order"),
        (lambda ranks: ranks | {"test/user": 0 * ranks["test/user"]}, "no ascending order"),
    ],
)
def test_ranks_of_another_run_give_no_gain(tmp_path, change, words):
    for name in ("none", "early"):
        plain_run(tmp_path / name, name)
    file = tmp_path / "early" / "ranks.npz"
    np.savez(file, **change(dict(np.load(file))))
    found, notes = table.gains(find_runs(str(tmp_path))[0], draws=100, metrics=("auc",))
    assert found.filter(ranking="uni99")["gain"].null_count() == 4
    assert found["mean"].null_count() == 0
    assert any("early/ranks.npz: test/" in n and words in n and "no gain" in n for n in notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"PK broken"), "damaged"),
        (lambda path: np.savez(path, seed=np.arange(3)), "no array 'test/domain'"),
        (lambda path: _cut_an_array(path), "ranks.npz"),
    ],
)
def test_damaged_ranks_leave_the_means_and_a_sentence(tmp_path, change, words):
    plain_run(tmp_path / "none")
    change(plain_run(tmp_path / "early", "early") / "ranks.npz")
    found, notes = table.gains(find_runs(str(tmp_path))[0], draws=100, metrics=("auc",))
    assert found["mean"].null_count() == 0 and found["gain"].null_count() == len(found)
    assert len(notes) in (1, 2) and all(words in n and "no gain of early" in n for n in notes)


def _cut_an_array(path):
    arrays = dict(np.load(path))
    cut = {name: arrays[name][:, :7] for name in ("test/uni99/rank", "test/full/rank")}
    np.savez(path, **arrays | cut)


def test_a_variant_without_baseline_and_a_single_seed_are_said(tmp_path):
    plain_run(tmp_path / "early", "early", seeds=1)
    found, notes = table.gains(find_runs(str(tmp_path))[0], draws=100)
    assert notes == [
        "early: no finished baseline of the same configuration among the runs: no gain"
    ]
    assert found["sd"].null_count() == len(found)
    plain_run(tmp_path / "none", seeds=1)
    found, notes = table.gains(find_runs(str(tmp_path))[0], draws=100, metrics=("auc",))
    assert any("a single seed on a side: the interval covers users only" in n for n in notes)
    early = found.filter(run="early")
    assert early["low"].null_count() == 0
    for name in ("p", "p_holm", "mde"):  # as if seeds did not vary
        assert early[name].null_count() == len(early)
    shutil.rmtree(tmp_path / "none")
    plain_run(tmp_path / "none", seeds=2)
    found, notes = table.gains(find_runs(str(tmp_path))[0], draws=100, metrics=("auc",))
    assert any("the variance of the other side's seeds stands for its own" in n for n in notes)
    assert found.filter(run="early")["p"].null_count() == 0


def test_a_detectable_gain_of_two_seeds_is_marked_as_rough(tmp_path):
    for name in ("none", "early"):
        plain_run(tmp_path / name, name, seeds=2, seed=len(name))
    found, _ = table.gains(find_runs(str(tmp_path))[0], draws=100, metrics=("auc",))
    gains = table.sheets(found)[1]
    assert all(row[gains.header.index("detectable gain")].startswith("≈ ") for row in gains.rows)


def test_diverged_seeds_and_null_metrics_are_left_out(tmp_path):
    path = plain_run(tmp_path / "none")
    plain_run(tmp_path / "early", "early")
    summary = json.loads((path / "summary.json").read_text())
    summary["per_seed"][0] = {"seed": 0, "epochs": 1, "best_epoch": 0, "diverged_step": 9}
    summary["per_seed"][1]["test/A/auc/full"] = None
    (path / "summary.json").write_text(json.dumps(summary))
    found, _ = table.gains(find_runs(str(tmp_path))[0], draws=100)
    row = of(found, run="none", domain="A", ranking="full", metric="auc")
    assert row["seeds"] == 1 and row["sd"] is None
    gain = of(found, run="early", domain="A", ranking="uni99", metric="auc")
    ranks = read_run(path).ranks()
    assert gain["gain"] is not None and ranks["test/full/rank"].shape[0] == 3


def test_a_baseline_whose_seeds_all_diverged_is_said(tmp_path):
    path = plain_run(tmp_path / "none")
    plain_run(tmp_path / "early", "early")
    summary = json.loads((path / "summary.json").read_text())
    summary["per_seed"] = [one | {"diverged_step": 9} for one in summary["per_seed"]]
    (path / "summary.json").write_text(json.dumps(summary))
    found, notes = table.gains(find_runs(str(tmp_path))[0], None, ("auc",), 100)
    assert found["gain"].null_count() == len(found) == 4
    assert notes == ["none: no seed that ended well: no gain of early"]


def in_short(folder, out, **options):
    asked = NO_FLAGS | {"metrics": ["auc"], "metric": "auc", "draws": 100} | options
    return table.section(find_runs(str(folder))[0], out, types.SimpleNamespace(**asked)).short


def test_only_gains_of_gca_are_counted_and_single_seeds_prove_nothing(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for name, gca, width in (("none", "none", 32), ("wide", "none", 64), ("early", "early", 32)):
        plain_run(runs / name, gca, seeds=1, seed=width + len(gca), model__d_embed=width)
    for baseline in (None, "wide"):
        said = in_short(runs, out, baseline=baseline)
        assert "Of 4 gains in AUC" in said and "4 have no test: single seeds" in said
        assert "beyond chance" not in said
    plain_run(runs / "stack", "stack", seeds=2)
    said = in_short(runs, out)
    assert "Of 8 gains" in said and "beyond chance" in said and "4 have no test" in said


@pytest.fixture
def papers_99(monkeypatch):
    """The paper's values as if of 99 candidates, which plain runs have."""
    monkeypatch.setitem(published.paper()["data"]["models"]["ABXI"], "candidates", "uni99")


def test_the_papers_gain_is_over_the_papers_baseline(tmp_path, papers_99):
    real = {"data__name": "beauty_elec", "fingerprint": "bf5d306965536625"}
    for name, gca, width in (("none", "none", 256), ("wide", "none", 320), ("early", "early", 256)):
        plain_run(tmp_path / name, gca, model__d_embed=width, **real)
    runs = find_runs(str(tmp_path))[0]
    for baseline, shown in (("none", {"+4.0 %", "−2.3 %"}), ("wide", {""})):
        gains = table.sheets(table.gains(runs, baseline, ("ndcg@10",), 100)[0])[1]
        assert {row[-1] for row in gains.rows if row[0] == "early"} == shown


def test_pages_hold_ours_and_the_papers_values(tmp_path, papers_99):
    real = {"data__name": "beauty_elec", "fingerprint": "bf5d306965536625"}
    plain_run(tmp_path / "none", model__d_embed=256, **real)
    plain_run(tmp_path / "early", "early", model__d_embed=256, n_parameters=2000, **real)
    found, _ = table.gains(find_runs(str(tmp_path))[0], draws=100)
    means, gains = table.sheets(found)[:2]
    paper = [row for row in means.rows if row[0] == "paper"]
    assert [(row[1], row[5]) for row in paper] == [
        *(("baseline", "A"), ("baseline", "B"), ("early", "A"), ("early", "B"))
    ]
    assert "0.1724 ± 0.0071" in paper[0] and "0.1244 ± 0.0025" in paper[3]
    by_metric = {(row[5], row[7]): row for row in gains.rows}
    assert by_metric["A", "NDCG@10"][-1] == "+4.0 %" and by_metric["A", "HR@10"][-1] == ""
    full = table.sheets(found)[2]
    assert "among all items" in full.title and not any(r[0] == "paper" for r in full.rows)
    for row in means.rows + gains.rows:  # whose numbers they are, in every row
        assert row[2] == "beauty_elec bf5d3069" and (row[0] == "paper" or row[3] == "official")
        assert row[0] == "paper" or row[4] == "256"


def test_the_papers_values_are_of_999_candidates(tmp_path):
    real = {"data__name": "beauty_elec", "fingerprint": "bf5d306965536625", "model__d_embed": 256}
    run = read_run(plain_run(tmp_path / "early", "early", **real))
    assert run.candidates == "uni99" and not published.beside(run)


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": "abcdef12"}, {"model__d_embed": 64}, {"data__name": "synthetic"}]
    + [{"data__split": "global_time"}],
)
def test_the_papers_values_never_stand_beside_strangers(tmp_path, other, papers_99):
    """Data under a known name, another width: in the table and in r."""
    real = {"data__name": "beauty_elec", "fingerprint": "bf5d306965536625", "model__d_embed": 256}
    for name, changes in (("papers", real), ("strange", real | other)):
        run = read_run(plain_run(tmp_path / name, "early", **changes))
        found, _ = table.gains([run], draws=100)
        points = correlate.points_of([run], "cos_abs")
        shown = (
            found["published_mean"].is_not_null().any(),
            points["published"].is_not_null().any(),
        )
        assert shown == ((name == "papers"),) * 2 or "data__name" in other and not shown[0]


def test_files_are_written_whole_in_every_form(runs, frame, tmp_path):
    options = types.SimpleNamespace(metrics=table.METRICS, metric="ndcg@10", draws=300, **NO_FLAGS)
    section = table.section(runs, tmp_path, options)
    assert len(section.sheets) == 4 and "of 8 gains" in section.short.lower()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"table.parquet", "table.csv", "table.md", "table.tex"}
    assert pl.read_parquet(tmp_path / "table.parquet").equals(frame)
    assert "NaN" not in (tmp_path / "table.csv").read_text()
    latex = (tmp_path / "table.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert r"$\pm$" in latex and "±" not in latex and "_" not in latex.replace(r"\_", "")


def test_a_gain_of_exactly_nothing_is_drawn_with_its_interval():
    part = pl.DataFrame({"gain": [0.0], "low": [-0.1], "high": [0.2], "mean": [0.5]})
    part = part.with_columns(relative_gain=0.0, metric=pl.lit("ndcg@10"))
    axis, look = figures.Figure().subplots(), figures.point_style(figures.marks(["a"])["a"])
    assert table._intervals(axis, part, ["ndcg@10"], 0.0, look, "a") == pytest.approx([-20, 40])


def test_a_sheet_in_its_three_forms():
    sheet = Sheet("a_b & c", ["name", "n"], [["x|y", "1 ± 2"], ["<z>", "−3 %"]])
    assert sheet.markdown().splitlines()[2:] == [
        "| name | n |",
        "| --- | ---: |",
        r"| x\|y | 1 ± 2 |",
        "| <z> | −3 % |",
    ]
    assert r"a\_b \& c" in sheet.latex() and r"$<$z$>$ & $-$3 \% \\" in sheet.latex()
    assert "&lt;z&gt;" in sheet.html() and '<td class="n">1 ± 2</td>' in sheet.html()


def test_the_figure_has_a_panel_for_each_domain(frame):
    (figure,) = table.draw(frame).values()
    assert [axis.get_title("left") for axis in figure.axes] == ["Domain A", "Domain B"]
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"no gain", "early, uni99", "stack, full"} <= set(labels)
