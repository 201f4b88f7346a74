"""Changes of ranking quality under interventions, their intervals, and the projection ablation."""

import dataclasses
import json
import types

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import ablation, intervene, output
from analysis.interventions import UNCHANGED, Intervention
from analysis.output import interval, number
from analysis.resampling import compare
from analysis.runs import read_run
from oa_jax.errors import UserError
from tests.analysis import _made_runs as made

PARTS = ("full", "orthogonal", "random", "zero")
WHERE = {"domain": "A", "metric": "ndcg@10/full"}


@pytest.fixture(scope="module")
def measured(finished):
    """(frame of the finished run, what was said)."""
    said = made.Said()
    frame = intervene.intervene(
        read_run(finished), say=said, parts=PARTS, scales=(1.0, 3.0), each_place=True, draws=200
    )
    return frame, said


def one(frame, **where):
    for name, value in where.items():
        column = pl.col(name)
        frame = frame.filter(column.is_null() if value is None else column == value)
    assert len(frame) == 1
    return frame.row(0, named=True)


def test_unchanged_ranks_are_bitwise_those_of_the_run(measured, finished):
    ranks = read_run(finished).ranks()
    total = 2 * sum(v.size for k, v in ranks.items() if k.startswith("test/") and "/rank" in k)
    assert f"unchanged, all {total} ranks and ties are those of ranks.npz" in measured[1]
    full = measured[0].filter((pl.col("intervention") == "full") & (pl.col("scale") == 1))
    assert len(full) == 4 * 2 * 18
    for name in ("change", "low", "high"):
        assert (full[name] == 0).all()
    others = measured[0].filter(pl.col("intervention") != "full")
    assert (
        others.group_by("intervention", "places").agg(pl.col("change").abs().max())["change"] > 0
    ).all()


def test_the_comparison_with_the_run_notices_another_rank(finished):
    ranks = read_run(finished).ranks()
    counts = {
        name: type("Ranks", (), {f: ranks[f"test/{name}/{f}"] for f in ("rank", "ties")})
        for name in ("uni10", "full")
    }
    ranker = type("Ranker", (), {"split": "test", "seeds": np.array([0, 1, 2])})
    assert "all" in intervene.agreement(counts, ranks, ranker)
    changed = ranks | {"test/full/rank": ranks["test/full/rank"] + (np.arange(3) == 1)[:, None]}
    n_users = ranks["test/full/rank"].shape[1]
    assert f"unchanged, {n_users} of " in intervene.agreement(counts, changed, ranker)


def test_base_values_are_the_metrics_of_the_run(measured, finished):
    summary = json.loads((finished / "summary.json").read_text())
    frame = measured[0].filter((pl.col("intervention") == "zero") & (pl.col("places") == "all"))
    for entry in summary["per_seed"]:
        for row in frame.filter(pl.col("seed") == entry["seed"]).to_dicts():
            there = entry[f"test/{row['domain']}/{row['metric']}"]
            assert row["base"] == pytest.approx(there, rel=1e-9)
            assert row["users"] == entry[f"test/{row['domain']}/users"]
    for row in frame.filter(pl.col("seed").is_null()).to_dicts():
        there = summary["mean"][f"test/{row['domain']}/{row['metric']}"]
        assert row["base"] == pytest.approx(there, rel=1e-9)


def test_rows_hold_together(measured):
    frame, _ = measured
    assert dict(frame.schema) == intervene.SCHEMA
    keys = ["seed", "places", "intervention", "scale", "domain", "metric"]
    assert not frame.select(keys).is_duplicated().any()
    n_kinds = 3 * (1 + 2 * 2 + 1) + 1  # per place: full × 3, two parts at two scales, zero
    assert len(frame) == n_kinds * 4 * 2 * 18
    np.testing.assert_allclose(frame["value"] - frame["base"], frame["change"], atol=1e-12)
    assert ((frame["low"] <= frame["change"]) & (frame["change"] <= frame["high"])).all()
    pooled = one(frame, seed=None, places="all", intervention="zero", domain="A", metric="mrr/full")
    seeds = frame.filter(
        (pl.col("places") == "all")
        & (pl.col("intervention") == "zero")
        & (pl.col("domain") == "A")
        & (pl.col("metric") == "mrr/full")
        & pl.col("seed").is_not_null()
    )
    assert seeds["change"].mean() == pytest.approx(pooled["change"])
    assert pooled["step"] is None and seeds["step"].to_list() == [5, 4, 3]


def test_all_places_are_not_one_place(measured):
    changes = {
        places: one(
            measured[0], seed=0, places=places, intervention="zero", domain="A", metric="mrr/full"
        )["change"]
        for places in ("all", "0", "1")
    }
    assert len(set(changes.values())) == 3


def test_a_run_trained_with_a_part_is_changed_where_it_had_it(finished):
    run = trained_with(read_run(finished), "part", part="orthogonal", part_of="update")
    asked = {"parts": ("zero",), "scales": (1.0,), "draws": 100, "part_of": "gated"}
    frame = intervene.intervene(run, say=made.Said(), **asked)
    assert set(frame["part_of"]) == {"update"}


# ---- intervals


def paired(difference, draws):
    return compare(difference, None, np.random.default_rng(0), draws)


def test_interval_of_one_seed_is_that_of_paired_users():
    difference = np.random.default_rng(0).normal(0.1, 1.0, (1, 1, 400))
    (found,) = paired(difference, 4000)
    expected = stats.t.interval(0.95, 399, difference.mean(), difference.std(ddof=1) / 20)
    assert found.estimate == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(expected, abs=0.01)
    (again,) = paired(difference, 4000)
    # Draws follow from nothing but their number. (p is NaN, which equals nothing.)
    assert repr(again) == repr(found)


def test_seeds_that_disagree_widen_the_interval():
    users = np.random.default_rng(1).normal(0, 1, 400)
    agree = np.stack([users + 0.1] * 4)
    disagree = agree + np.array([-0.5, -0.2, 0.2, 0.5])[:, None]
    narrow, wide = paired(np.stack([agree, disagree]), 1000)
    assert narrow.estimate == pytest.approx(wide.estimate)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_a_constant_change_is_certain_and_nan_stays_nan():
    same, lost = paired(np.stack([np.full((2, 30), 0.25), np.full((2, 30), np.nan)]), 100)
    assert (same.estimate, same.low, same.high) == (0.25, 0.25, 0.25)
    assert np.isnan([lost.estimate, lost.low, lost.high]).all()


# ---- runs that are not whole


def test_what_cannot_be_done_is_one_line(finished, copied, stack, tmp_path):
    run = read_run(finished)
    baseline = dataclasses.replace(
        run, config=run.config | {"gca": run.config["gca"] | {"positions": []}}
    )
    assert intervene.intervene(baseline, say=made.Said()).is_empty()
    with pytest.raises(UserError, match="--interventions=half"):
        intervene.intervene(run, say=made.Said(), parts=("half",))
    env = json.loads((copied / "env.json").read_text())
    env["fingerprints"]["candidates_test"] = "0" * 16
    (copied / "env.json").write_text(json.dumps(env))
    with pytest.raises(UserError, match="candidates_test fingerprint"):
        intervene.intervene(read_run(copied), say=made.Said())


class Fixed:
    """A ranker whose ranks are given: users of both domains, three seeds, one not finite."""

    seeds, epochs = np.array([0, 1]), np.array([7, 9])
    split, step = "test", None
    rows = {"domain": np.array([0, 1, 0, 1]), "target": np.arange(4)}

    tie_weight = 0.5

    def ranks(self, intervention):
        rank = np.array([[1, 2, 3, 4]] * 2)
        if intervention.part == "zero":
            rank = rank + np.array([[0], [2]])
        finite = np.ones((2, 4), bool)
        finite[1] = intervention.part != "random"
        n = np.full((2, 4), 20)
        return {
            "full": type(
                "Ranks", (), dict(rank=rank, ties=2 + 0 * n, n_candidates=n, finite=finite)
            )
        }

    metrics = intervene.Ranker.metrics


def test_a_score_that_is_not_finite_is_nan_for_its_seed_and_the_mean():
    ranker = Fixed()
    asked = [Intervention("random"), Intervention("zero")]
    records = intervene._changes(
        ranker, ranker.ranks(UNCHANGED), asked, {"run": "r"}, 100, made.Said()
    )
    frame = pl.DataFrame(records)
    where = {"domain": "A", "metric": "mrr/full"}
    for seed, lost in ((0, False), (1, True), (None, True)):
        row = one(frame, seed=seed, intervention="random", **where)
        assert np.isnan(row["change"]) == np.isnan(row["low"]) == lost
    # Ranks 1, 3 become 3, 5; of two ties each has one before it.
    by_hand = ((1 / 4 + 1 / 6) - (1 / 2 + 1 / 4)) / 2
    assert one(frame, seed=1, intervention="zero", **where)["change"] == pytest.approx(by_hand)
    assert one(frame, seed=0, intervention="zero", **where)["change"] == 0
    assert one(frame, seed=None, intervention="zero", **where)["change"] == pytest.approx(
        by_hand / 2
    )


# ---- tables


def test_every_kept_step_has_a_row_of_its_own(finished):
    run = read_run(finished)
    asked = {"say": made.Said(), "parts": ("zero",), "scales": (1.0,), "draws": 100}
    frame = intervene.intervene(run, "all", **asked)
    pooled = frame.filter(pl.col("seed").is_null(), metric="ndcg@10/full", domain="A")
    assert pooled.filter(intervention="zero")["step"].to_list() == list(made.STEPS)
    sheet = intervene.sheet(frame, [run], "ndcg@10/full", "all")
    rows = [row for row in sheet.rows if row[2] == "nothing"]
    assert [row[1] for row in rows] == list(map(str, made.STEPS))
    values = pooled.filter(intervention="zero")["value"]
    assert [row[5] for row in rows] == [number(value, 4) for value in values]


def test_table_for_people(measured, finished):
    run = read_run(finished)
    assert intervene.names_of(measured[0], "ndcg@10") == ["ndcg@10/uni10", "ndcg@10/full"]
    assert intervene.names_of(measured[0], "ndcg@7") == []
    sheet = intervene.sheet(measured[0], [run], "ndcg@10/full")
    row = one(measured[0], seed=None, places="all", intervention="zero", **WHERE)
    (cells,) = (r for r in sheet.rows if r[1:4] == ["nothing", "1", "all"])
    change = number(row["change"], 4, sign=True)
    assert cells[5:7] == [change, interval(row["low"], row["high"], 4, True)]
    of_b = one(measured[0], seed=None, places="all", intervention="zero", **WHERE | {"domain": "B"})
    assert cells[8] == number(of_b["change"], 4, sign=True) != change
    assert {r[1] for r in sheet.rows} == {"α ⊙ X′ as it is", "α ⊙ X′⊥, the rest", "nothing"} | {
        "random at the norm of α ⊙ X′"
    }


def trained_with(run, name, **gca):
    return dataclasses.replace(run, name=name, config=run.config | {"gca": run.config["gca"] | gca})


def test_ablation_puts_retrained_replaced_and_published_side_by_side(
    measured, finished, tmp_path, monkeypatch
):
    run = read_run(finished)
    real = dataclasses.replace(
        run,
        config=run.config | {"data": run.config["data"] | {"name": "beauty_elec"}},
        env=run.env | {"fingerprints": {"data": "bf5d306965536625"}},
    )
    runs = [
        real,
        trained_with(real, "par", part="parallel"),
        trained_with(real, "reg", ortho_weight=0.1),
    ]
    # Eight units are no width to hold against 256.
    assert "published" not in ablation.collect(runs, measured[0])["source"]
    monkeypatch.setattr(ablation.published, "WIDER", 100)
    setup = ablation.published.paper()["data"]["models"]["ABXI"]
    monkeypatch.setitem(setup, "candidates", real.candidates)
    said = made.Said()
    ablation.write(runs, measured[0], tmp_path, said)
    frame = pl.read_parquet(tmp_path / "ablation.parquet")
    where = {"metric": "A/ndcg@1/uni10"}
    trained = one(frame, source="trained so", used="full", **where)
    assert trained["mean"] == pytest.approx(run.summary["mean"]["test/A/ndcg@1/uni10"])
    assert trained["sd"] == pytest.approx(run.summary["sd"]["test/A/ndcg@1/uni10"])
    assert trained["variant"] == "stack, d=8" and trained["seeds"] == 3
    assert one(frame, source="trained so", used="parallel", **where)["detail"] == "par"
    assert (
        one(frame, source="trained so", used="full + ortho term", **where)["detail"] == "reg, λ=0.1"
    )
    changed = one(frame, source=ablation.REPLACED + ablation.OF_GATED, used="orthogonal", **where)
    pooled = one(
        measured[0],
        seed=None,
        places="all",
        intervention="orthogonal",
        scale=1.0,
        domain="A",
        metric="ndcg@1/uni10",
    )
    assert changed["mean"] == pytest.approx(pooled["value"])
    published = one(frame, source="published", used="orthogonal", **where)
    assert (published["mean"], published["sd"], published["variant"]) == (0.0701, 0.0019, "stack")
    text = (tmp_path / "ablation.md").read_text()
    assert "| stack | published | 0.0733 ± 0.0042 | 0.0611 ± 0.0028 | 0.0701 ± 0.0019 |" in text
    assert "(λ=0.1)" in text and "no finished run trained with orthogonal" in said
    assert not any(p.suffix == ".tmp" for p in tmp_path.iterdir())


def test_ablation_tells_other_fusions_and_sources_apart(finished):
    run = read_run(finished)
    others = [trained_with(run, "self", source="self"), trained_with(run, "both", part="split")]
    frame = ablation.collect([run, *others], pl.DataFrame())
    assert ablation.sheets(frame)[0].header[-1] == "split"  # no part of the paper's
    full = frame.filter(used="full", metric="A/ndcg@1/uni10")
    assert full["variant"].to_list() == ["stack, d=8", "stack, source=self, d=8"]
    assert all(" (" not in cell for row in ablation.sheets(frame)[0].rows for cell in row)


def test_the_page_shows_the_ablation_of_its_own_runs(measured, finished, tmp_path):
    """An earlier call may have left one of more runs, or of others by the same name."""
    run = read_run(finished)
    frame = measured[0].with_columns(digest=pl.lit(run.digest))
    ablation.write([run, trained_with(run, "gone", part="parallel")], frame, tmp_path, made.Said())
    output.write_frame(tmp_path, "intervene", frame)
    options = types.SimpleNamespace(metric="ndcg@10")
    words = str([s.rows for s in intervene.section([run], tmp_path, options).sheets])
    assert "trained so" in words and "gone" not in words
    alone = words.count("±")
    more = [run, trained_with(run, "parallel", part="parallel")]
    sheets = intervene.section(more, tmp_path, options).sheets
    assert str([s.rows for s in sheets]).count("±") > alone
    stranger = trained_with(run, run.name, gate_act="tanh")
    assert intervene.section([stranger], tmp_path, options).missing


def test_ablation_of_a_pair_that_nobody_published(measured, finished):
    frame = ablation.collect([read_run(finished)], measured[0])
    of_gated = ablation.REPLACED + ablation.OF_GATED
    assert set(frame["source"]) == {ablation.TRAINED, of_gated}
    both = pl.concat([measured[0], measured[0].with_columns(part_of=pl.lit("update"))])
    gated = trained_with(read_run(finished), "gated", part="parallel", part_of="gated")
    frame = ablation.collect([read_run(finished), gated], both)
    assert set(frame["source"]) == set(ablation.SOURCES) - {ablation.PUBLISHED}
    assert frame.filter(used="parallel", detail="gated")["source"].unique().to_list() == [
        ablation.TRAINED + ablation.OF_GATED
    ]
    assert ablation.sheets(frame.clear()) == []
