"""CDSRNP through the engine: the support set of evaluation, groups, selection, going on."""

import json

import jax
import numpy as np
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.commands import report
from oa_jax.errors import UserError

BACKBONE = "cdsrnp"


def build(argument="pair=synthetic,gca=early", **changes):
    return toy.small_experiment(BACKBONE, argument, **changes)


def test_an_interrupted_run_goes_on_bit_for_bit(check_going_on):
    check_going_on()


def test_groups_part_the_users(whole):
    path, _ = whole
    summary = json.loads((path / "summary.json").read_text())
    users = {k.split("/")[1]: v for k, v in summary["mean"].items() if k.endswith("/users")
             and k.startswith("test/")}  # fmt: skip
    assert users["overlap"] + users["single"] == users["all"] == users["A"] + users["B"] == 95
    assert users["single"] == 35 and (users["single_A"], users["single_B"]) == (15, 20)
    assert users["overlap_A"] + users["overlap_B"] == users["overlap"]
    for ranking in ("uni10", "full"):
        for group in users:
            assert 0 < summary["mean"][f"test/{group}/mrr/{ranking}"] < 1
    assert "best/gca/0/A/abs_cos" in summary["mean"]
    losses = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    assert losses["train/kl_A"] > 0 and losses["train/loss_rec"] > 0


def test_selection_is_the_sum_of_both_domains(experiment, whole):
    path, states = whole
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for slot, seed in enumerate(experiment.seeds):
        watched = [
            sum(r[f"val/{d}/ndcg@10/uni10"] for d in "AB")
            for r in rows
            if r["seed"] == seed and r["epoch"] > 0
        ]
        assert int(states.best_epoch[slot]) == 1 + int(np.argmax(watched))
        assert float(states.best_score[slot]) == pytest.approx(max(watched), rel=1e-5)


def test_support_of_evaluation_is_of_training_rows_and_follows_from_the_data(experiment):
    task, support = experiment.data.task, experiment.data.tables
    seq = task.train_arrays()["seq"]
    again = build(first_seed=9, model__d_embed=4).data.tables
    jax.tree.map(np.testing.assert_array_equal, support.rows, again.rows)
    assert support.metadata == again.metadata
    assert len(support.rows["target"]) == 20 < len(task.pool)
    known = {tuple(row) for row in seq[task.pool].tolist()}
    assert {tuple(row) for row in support.rows["seq"].tolist()} <= known
    assert len(build(model__eval_support=0).data.tables.rows["target"]) == len(task.pool)
    log, users = experiment.data.log, {}
    for r in task.pool:
        users.setdefault(str(seq[r].tolist()), task.rows.user[r])
    for sequence, negative, target in zip(
        *(support.rows[k] for k in ("seq", "negative", "target")), strict=True
    ):
        user = users[str(sequence.tolist())]
        own = log.item[log.offsets[user] : log.offsets[user] + task.split.n_train[user]]
        assert negative not in own and target in own
        assert (negative > log.n_items[0]) == (target > log.n_items[0])


def test_support_is_no_parameter(experiment, whole):
    _, states = whole
    shapes = {a.shape for a in jax.tree.leaves(experiment.tables)}
    assert not shapes & {a.shape[1:] for a in jax.tree.leaves(states)}


def test_without_the_neural_process_nothing_of_it_is_left():
    plain = build("pair=synthetic,np=false")
    assert plain.data.tables is None and plain.tables is None and plain.data.task.n_support == 0
    names = plain.engine.abstract(plain.seeds, plain.hparams()).params["net"]
    assert not {"pair_encoder", "latent_head"} & set(names)
    assert plain.engine.n_parameters < build("pair=synthetic").engine.n_parameters


def test_candidates_of_the_tested_items():
    """A log with roles: sequences 0 to 3 train, 4 validates, 5 and 6 are tested."""
    from oa_jax.events.log import TEST, TRAINING, VALIDATION, make_log
    from oa_jax.events.split import published

    rng = np.random.default_rng(0)
    sequences = [rng.permutation(np.r_[rng.integers(1, 41, 6), rng.integers(41, 81, 6)])
                 for _ in range(7)]  # fmt: skip
    user = np.repeat(np.arange(7), 12)
    role = np.where(user < 4, TRAINING, -1)
    role[11 + 12 * 4], role[11 + 12 * np.array([5, 6])] = VALIDATION, TEST
    columns = user, np.concatenate(sequences), np.tile(np.arange(12), 7)
    log = make_log(*columns, (40, 40), "tiny", role)
    few = {"evaluate__n_negatives": 3, "evaluate__test_items": True}
    parts = known.parts(known.resolve(toy.small_config("cdsrnp", "pair=synthetic", **few)))
    target = np.array([sequences[u][-1] for u in (5, 6)])
    seen = np.array([np.where(sequences[u] == sequences[u][-1], 0, sequences[u]) for u in (5, 6)])
    rows = {"user": np.array([5, 6]), "target": target, "seen": seen}
    drawn = parts.candidates(log, "test", rows)
    assert set(parts.rankings) == {"test_items", "candidates", "full"}
    among = drawn["test_items"]
    assert among.shape == (2, 4) and (among[:, 0] == target).all()
    assert set(among.ravel()) <= {i for u in (5, 6) for i in sequences[u].tolist()}
    for k in range(2):
        assert len(set(among[k])) == 4 and not set(among[k, 1:]) & set(seen[k])
        assert len(set(among[k] > 40)) == 1
    assert published(log).test.tolist() == [-1] * 5 + [11, 11]


MISTAKES = {
    "protocol": ("official", "--config.protocol=official: expected one of corrected"),
    "model__heads": (3, "--config.model.heads=3: expected a divisor"),
    "model__targets": ("first", "expected one of each_domain, last, every"),
    "model__interest": ("deep", "expected one of film, attention, none"),
    "model__decoder_widths": ((), "--config.model.decoder_widths=[]: expected a list of whole"),
    "model__kl_weight": (-0.1, "--config.model.kl_weight=-0.1: expected a number from 0"),
    "model__support": (0, "--config.model.support=0: expected a whole number of at least 1"),
    "train__n_negatives": (2, "--config.train.n_negatives=2: expected one of 1"),
    "evaluate__n_negatives": (40, "evaluate.n_negatives=40: a user has"),
}


@pytest.mark.parametrize("field", MISTAKES)
def test_mistakes_are_one_line(field):
    value, words = MISTAKES[field]
    with pytest.raises(UserError) as caught:
        build(**{field: value})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pair", ["elec_phone_amid", "cloth_sport_amid", "llmcdsr_food_kitchen", "synthetic"]
)
@pytest.mark.parametrize("more", ["", "size=small", "runlocal", "gca=stack", "np=false"])
def test_configurations_resolve(pair, more):
    resolved = known.resolve(toy.config_file("cdsrnp", f"pair={pair},{more}"))
    assert resolved.evaluate.test_items == pair.endswith("_amid")
    assert (resolved.model.targets == "last") == pair.endswith("_amid")


def test_defaults_are_the_official_ones():
    """Sizes and rates, and the choices that the official code leaves open."""
    config = toy.config_file("cdsrnp", "pair=llmcdsr_food_kitchen")
    model = {"d_embed": 128, "heads": 4, "length": 50, "merged_length": 100, "dropout": 0.2}
    model |= {"support": 128, "kl_weight": 0.01, "kl_warmup": 10, "eval_support": 2048}
    assert model.items() <= config.model.to_dict().items()
    train = {"batch_size": 256, "learning_rate": 5e-4, "max_epochs": 50, "weight_decay": 0.0}
    assert train.items() <= config.train.to_dict().items()
    assert config.evaluate.n_negatives == 999 and config.seeds == 5


def test_the_report_tells_the_models_apart(whole):
    path, _ = whole
    summary = report.read(str(path))[0]
    assert summary["label"] == "cdsrnp + GCA[0]"
    assert build("pair=synthetic,np=false").label == "cdsrnp without NP"
