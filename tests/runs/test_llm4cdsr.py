"""LLM4CDSR through the engine: frozen tables, selection, metrics, going on bit for bit."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.commands import report
from oa_jax.errors import UserError

BACKBONE = "llm4cdsr"


def get_config(argument="pair=synthetic,gca=early"):
    return toy.config_file("llm4cdsr", argument)


def build(argument="pair=synthetic,gca=early", **changes):
    return toy.small_experiment(BACKBONE, argument, **changes)


def test_an_interrupted_run_goes_on_bit_for_bit(check_going_on):
    check_going_on()


def test_frozen_tables_stay_out_of_state_and_checkpoint(experiment, whole):
    path, states = whole
    tables = experiment.engine.settings.backbone.tables
    shapes = {a.shape for a in jax.tree.leaves(tables)}
    seeded = {a.shape[1:] for a in jax.tree.leaves(states)}
    assert not shapes & seeded
    with ocp.CheckpointManager(path / "checkpoints") as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(), best=ocp.args.PyTreeRestore()))  # fmt: skip
    stored = {np.shape(a)[1:] for part in ("state", "best") for a in jax.tree.leaves(found[part])}
    assert stored and not shapes & stored
    # Seeds share one copy on the device, and it is what it was.
    fresh = build().engine.settings.backbone.tables
    for ours, device, again in zip(
        *map(jax.tree.leaves, (tables, experiment.tables, fresh)), strict=True
    ):
        np.testing.assert_array_equal(ours, device)
        np.testing.assert_array_equal(ours, again)


def test_trained_tables_are_in_the_state():
    free = build(model__freeze=False)
    abstract = free.engine.abstract(free.seeds, free.hparams())
    seeded = {a.shape[1:] for a in jax.tree.leaves(abstract.params)}
    frozen = free.engine.settings.backbone.tables
    assert {a.shape for a in (frozen.items, frozen.local_A)} <= seeded


def test_every_ranking_is_in_the_summary(whole):
    path, _ = whole
    summary = json.loads((path / "summary.json").read_text())
    mean = summary["mean"]
    for group in ("A", "B", "all", "short", "long", "tail", "popular"):
        for ranking in ("official10", "uni10", "full"):
            for metric in ("hr@10", "ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20", "mrr", "auc"):
                assert f"test/{group}/{metric}/{ranking}" in mean
    for a, b in (("A", "B"), ("short", "long"), ("tail", "popular")):
        counts = [mean[f"test/{name}/users"] for name in (a, b, "all")]
        assert counts[0] + counts[1] == counts[2] == 60
    weighted = sum(mean[f"test/{d}/users"] * mean[f"test/{d}/mrr/full"] for d in "AB") / 60
    assert mean["test/all/mrr/full"] == pytest.approx(weighted)
    (sheet, *_) = report.sheets([summary], "test")
    assert [row[6] for row in sheet.rows] == ["A"] * 3 + ["B"] * 3 + ["all"] * 3


def test_selection_is_overall_ndcg_and_strict(experiment, whole):
    path, states = whole
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for slot, seed in enumerate(experiment.seeds):
        of_seed = [r for r in rows if r["seed"] == seed and r["epoch"] > 0]
        watched = [r["val/all/ndcg@10/official10"] for r in of_seed]
        first_best = 1 + int(np.argmax(watched))  # argmax: the first of equals
        assert int(states.best_epoch[slot]) == first_best
        assert float(states.best_score[slot]) == pytest.approx(max(watched), rel=1e-5)
        assert [r["learning_rate"] for r in of_seed] == pytest.approx([0.01] * 3)


def test_a_validation_as_good_as_the_best_is_no_improvement(experiment, whole):
    _, states = whole
    one = jax.tree.map(lambda a: a[0], states)
    after = experiment.engine.settings.schedule.after_validation(one, one.best_score)
    assert int(after.bad_epochs) == int(one.bad_epochs) + 1
    better = experiment.engine.settings.schedule.after_validation(one, one.best_score + 0.1)
    assert int(better.bad_epochs) == 0 and int(better.best_epoch) == int(one.epoch)


def test_candidates_of_the_two_protocols(experiment):
    rows, (n_a, n_b) = experiment.evaluation.rows["test"], experiment.data.log.n_items
    uniform, pairs = rows["candidates"], rows["official"]
    assert uniform.shape == (60, 11) and pairs.shape == (60, 2, 11)
    for ids in (uniform, pairs[:, 0], pairs[:, 1]):
        np.testing.assert_array_equal(ids[:, 0], rows["target"])
        np.testing.assert_array_equal(ids > n_a, np.repeat(rows["domain"][:, None] == 1, 11, 1))
        assert all(len(set(row)) == 11 for row in ids.tolist())
    negatives = pairs[:, :, 1:]
    assert not np.isin(negatives, [n_a, n_a + n_b]).any()  # Q7
    assert np.isin(uniform[:, 1:], [n_a, n_a + n_b]).any()
    assert (negatives[:, 0] != negatives[:, 1]).mean() > 0.5  # Q2
    again = build(first_seed=5, model__d_embed=4).evaluation.rows["test"]
    np.testing.assert_array_equal(again["official"], pairs)


def test_the_protocol_chooses_what_is_watched():
    official, corrected = build(), build(protocol="corrected")
    assert (official.evaluation.watched, corrected.evaluation.watched) == ("official", "candidates")
    assert official.evaluation.rankings == corrected.evaluation.rankings
    assert set(official.train_arrays()["val"]) & {"official", "candidates"} == {"official"}
    assert set(corrected.train_arrays()["val"]) & {"official", "candidates"} == {"candidates"}
    assert not corrected.engine.settings.backbone.quirks.q1_no_causal_mask
    assert not corrected.data.task.quirks.q6_two_negatives
    assert official.data.task.quirks.q6_two_negatives
    names = {"temperature", "alpha", "beta", "tau", "tau_reg"} & set(official.hparams())
    assert names == {"alpha", "beta", "tau", "tau_reg"}


MISTAKES = {
    "model__heads": (3, "--config.model.heads=3: expected a divisor"),
    "model__alpha": (-1.0, "--config.model.alpha=-1.0: expected a number from 0"),
    "model__tau": (0.0, "--config.model.tau=0.0: expected a number above 0"),
    "train__n_negatives": (2, "--config.train.n_negatives=2: expected one of 1"),
    "train__negatives": ("per_sequence", "expected one of per_position"),
    "train__selection": ("auc", "--config.train.selection=auc: expected one of mrr_sum, ndcg@10"),
    "data__users": ("some", "--config.data.users=some: expected one of all, overlap"),
    "data__global_width": (65, "--config.data.global_width=65: expected at most 53"),
    "data__split": ("published", "synthetic: came without a split of its own"),
    "data__name": ("cloth_sport", "data source cloth_sport: no directory was given"),
    "model__d_embed": (65, "--config.model.d_embed=65: expected at most 23, as wide as local_a"),
    "evaluate__n_negatives": (40, "evaluate.n_negatives=40: a user has"),
}


@pytest.mark.parametrize("field", MISTAKES)
def test_mistakes_are_one_line(field):
    value, words = MISTAKES[field]
    with pytest.raises(UserError) as caught:
        build(**{field: value})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", ["cloth_sport", "elec_phone", "llmcdsr_food_kitchen", "synthetic"])
@pytest.mark.parametrize("more", ["", "size=small", "runlocal", "gca=stack"])
def test_configurations_resolve(pair, more):
    resolved = known.resolve(get_config(f"pair={pair},{more}"))
    assert resolved.quirks.q2_score_two_items_as_one and resolved.train.strict


def test_diverged_scores_have_no_rank(experiment, whole):
    """Q20: not a number is no rank, it is an error that names seed and user."""
    path, _ = whole
    ranks = dict(np.load(path / "ranks.npz"))
    broken = ranks["test/official10/finite"].copy()
    broken[1, 7] = False
    with pytest.raises(UserError, match=r"seed 1: non-finite score for user 7"):
        experiment.evaluation.of_seed(ranks | {"test/official10/finite": broken}, 1)
