"""Rules without learning, against scores and ranks counted one by one."""

import functools
import json
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from oa_jax import experiment as experiment_lib
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.commands import report, rules
from oa_jax.evaluation import SPLITS
from oa_jax.events.rows import Ragged
from oa_jax.ranking import similar

TINY = {
    "data.world.n_users": 40,
    "data.world.single": (9, 8),
    "data.world.n_items": (24, 30),
    "data.world.topics": 2,
    "data.world.min_length": 8,
    "data.world.max_length": 12,
    "evaluate.n_negatives": 10,
    "evaluate.block_users": 16,
    "evaluate.block_items": 7,
    "train.n_negatives": 1,
}
BACKBONES = ("abxi", "llm4cdsr")
COUNTED = ("popularity", "last-item popularity", "popularity of larger ids")
COMPARED = ("ItemKNN", "EASE")


@functools.cache
def config_of(backbone, **changes):
    config = presets.load(f"configs/{backbone}.py:pair=synthetic")
    config.update_from_flattened_dict(TINY | {k.replace("__", "."): v for k, v in changes.items()})
    return known.resolve(config)


@functools.cache
def build(backbone, **changes):
    """The data and the evaluation, without a model."""
    config = config_of(backbone, **changes)
    data = experiment_lib.load(config)
    return types.SimpleNamespace(
        data=data, evaluation=experiment_lib.build_evaluation(config, data)
    )


@functools.cache
def summaries(backbone, **changes):
    options = {"neighbours": 3, "ridge": 5.0, "gigabytes": 16.0, "say": print}
    compared = functools.partial(rules.similar_rules, **options)
    return {s["label"]: s for s in rules.evaluate(config_of(backbone, **changes), compared)}


def histories(experiment, n_events):
    """Items of each user's first events."""
    log = experiment.data.log
    return [log.item[b : b + n].tolist() for b, n in zip(log.offsets[:-1], n_events, strict=True)]


def scorers(experiment, split):
    """{rule: (user, item, target) -> score}, from loops over the users' lists."""
    log, n_a = experiment.data.log, experiment.data.log.n_items[0]
    trained = histories(experiment, experiment.data.split.n_train)
    before = histories(experiment, getattr(experiment.data.split, split))
    assert all(len(set(items)) == len(items) for items in before)
    total = [sum(items.count(i) for items in trained) for i in range(sum(log.n_items) + 1)]
    last = [sum(items[-1] == i for items in trained) for i in range(sum(log.n_items) + 1)]

    def larger(user, item, target):
        # Of the target's domain: with Q1 the pool of B has an item of A.
        largest = max((i for i in before[user] if (i > n_a) == (target > n_a)), default=0)
        return total[item] + (1 + max(total)) * (item > largest)

    def similar(user, item, target, weights):
        """Less the target, which a history as it is ranked never has."""
        return sum(weights[own, item] for own in set(before[user]) - {target})

    by_count = (lambda user, item, target, counts=counts: counts[item] for counts in (total, last))
    by_weights = (functools.partial(similar, weights=w) for w in weights_of(trained, len(total)))
    return dict(zip((*COUNTED, *COMPARED), (*by_count, larger, *by_weights), strict=True))


def weights_of(trained, n_rows, neighbours=3, ridge=5.0):
    """(cosines of the nearest, B of EASE), column by column."""
    x_UxV = np.zeros((len(trained), n_rows))
    for user, items in enumerate(trained):
        x_UxV[user, items] = 1
    cosine = np.zeros((n_rows, n_rows))
    for i in range(1, n_rows):
        for j in range(1, n_rows):
            both = x_UxV[:, i] @ x_UxV[:, j]
            cosine[i, j] = both and (i != j) * both / math.sqrt(
                x_UxV[:, i].sum() * x_UxV[:, j].sum()
            )
    kept = np.where(cosine >= np.sort(cosine, 0)[-neighbours], cosine, 0)
    # EASE's column j is the ridge regression of item j on all others.
    linear = np.zeros((n_rows, n_rows))
    for j in range(1, n_rows):
        others = np.delete(np.arange(n_rows), j)
        x = x_UxV[:, others]
        gram = x.T @ x + ridge * np.eye(len(others))
        linear[others, j] = np.linalg.solve(gram, x.T @ x_UxV[:, j])
    return kept.astype(np.float32), linear.astype(np.float32)


def items_ranked(experiment, rows, row, kind):
    """The target and its rivals, each a tuple of the items whose scores it sums."""
    if kind == "full":
        n_a, n_all = experiment.data.log.n_items[0], sum(experiment.data.log.n_items)
        target, seen = rows["target"][row], set(rows["seen"][row])
        domain = range(1, n_a + 1) if target <= n_a else range(n_a + 1, n_all + 1)
        return [(target,), *((i,) for i in domain if i != target and i not in seen)]
    found = rows[kind][row]
    return list(zip(*found, strict=True)) if found.ndim == 2 else [(i,) for i in found]


def expected(experiment, split, kind, score):
    """{metric: (R,)} of a rule under one ranking."""
    rows, found = experiment.evaluation.rows[split], {"ndcg@10": [], "auc": []}
    for row, user in enumerate(rows["user"]):
        ranked = items_ranked(experiment, rows, row, kind)
        goal = int(rows["target"][row])
        target, *others = (sum(score(user, int(i), goal) for i in items) for items in ranked)
        rank = 1 + sum(s > target for s in others)
        rank += experiment.evaluation.tie_weight * sum(s == target for s in others)
        found["ndcg@10"].append(1 / math.log2(1 + rank) if rank <= 10 else 0)
        found["auc"].append((len(ranked) - rank) / len(others))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rule", (*COUNTED, *COMPARED))
def test_rules_rank_as_counted_one_by_one(backbone, rule):
    experiment, mean = build(backbone), summaries(backbone)[rule]["mean"]
    for split in SPLITS:
        score, domain = (
            scorers(experiment, split)[rule],
            experiment.evaluation.rows[split]["domain"],
        )
        groups = {"A": domain == 0, "B": domain == 1} | experiment.evaluation.groups[split]
        for kind, name in experiment.evaluation.rankings.items():
            for metric, values in expected(experiment, split, kind, score).items():
                for group, mask in groups.items():
                    if not mask.any():
                        continue
                    found = mean[f"{split}/{group}/{metric}/{name}"]
                    assert found == pytest.approx(values[mask].mean()), (split, group, metric, name)


def test_rules_are_told_apart_by_what_they_rank():
    found = [summaries("abxi")[rule]["mean"]["test/A/auc/full"] for rule in (*COUNTED, *COMPARED)]
    assert len(set(found)) == 5


def test_ties_follow_the_configuration():
    favoured, middle = (
        summaries("abxi", quirks__q10_ties_favour_target=on)["last-item popularity"]["mean"]
        for on in (True, False)
    )
    assert favoured["test/A/auc/full"] > middle["test/A/auc/full"] + 0.02


def test_training_parts_alone_are_counted():
    """Users whose training part is taken away are not counted, nor is a target."""
    everyone, both = build("abxi"), build("abxi", data__users="overlap")
    n_items = sum(everyone.data.log.n_items)
    (_, counted), (_, fewer) = (
        rules.rules(e.data.log, e.data.task.split)["popularity"] for e in (everyone, both)
    )
    assert counted.shape == fewer.shape == (n_items + 1,) and counted[0] == 0
    assert counted.sum() == len(everyone.data.log.user) - 2 * 57
    assert fewer.sum() == counted.sum() - everyone.data.split.n_train[40:].sum()
    last = rules.rules(both.data.log, both.data.task.split)["last-item popularity"][1]
    assert last.sum() == 40


def test_weights_are_exact():
    log = build("abxi").data.log
    trained = histories(build("abxi"), build("abxi").data.split.n_train)
    counts = similar.counts(log, build("abxi").data.split.in_training(log))
    found = similar.item_knn(counts, 3), similar.ease(counts, 5.0)
    for one, expected in zip(found, weights_of(trained, 1 + sum(log.n_items)), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-6)
        assert np.abs(one).max() > 0.1 and not np.diag(one).any()
    assert not np.allclose(similar.ease(counts, 6.0), found[1], atol=1e-3)


def test_rules_that_need_too_much_memory_are_left_out():
    said, data = [], build("abxi").data
    assert rules.similar_rules(data.log, data.task.split, 100, 100.0, 1e-6, said.append) == {}
    assert "54 items: left out: expected --gigabytes=" in said[0]


def test_chance_is_chance_and_its_own_for_every_user():
    n_users, n_items = 3000, 400
    rows = {name: jnp.arange(n_users, dtype=jnp.int32) for name in ("user", "target")}
    scores = rules.Rule(rules.by_chance).score(None, rows, jnp.arange(1, n_items + 1))
    scores = np.asarray(scores)
    assert scores.shape == (n_users, n_items)
    place = (scores > scores[:, :1]).sum(1)  # of the first item among all
    assert np.abs(np.bincount(place // 40, minlength=10) / n_users - 0.1).max() < 0.025
    near = np.corrcoef(scores[:200])[np.triu_indices(200, 1)]
    assert np.abs(near).max() < 0.3 and abs(near.mean()) < 0.01
    along = np.corrcoef(scores[:, :-1].ravel(), scores[:, 1:].ravel())[0, 1]
    assert abs(along) < 0.01


def test_the_largest_id_is_of_the_targets_domain_and_history():
    rows = {
        "target": np.array([3, 9, 9, 2]),
        "seen": Ragged(np.array([1, 4, 8, 5, 7, 1, 5, 8]), np.array([3, 2, 2, 1])),
    }
    np.testing.assert_array_equal(rules.largest_seen(rows, n_a=5), [4, 7, 0, 0])


def test_the_report_shows_what_was_written(tmp_path):
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(list(summaries("llm4cdsr").values())))
    found = report.read(str(file))
    assert [s["label"] for s in found] == ["random", *COUNTED, *COMPARED]
    tables = {g: report.sheets(found, "test", g)[0].markdown() for g in (False, True)}
    assert "| official | 0 | – | A | official10 |" in tables[False] and "short" not in tables[False]
    assert "| official | 0 | – | short | full |" in tables[True]
