"""Configurations resolved, and the objects that they stand for."""

import dataclasses
import types

import jax
import numpy as np
import pytest

import oa_jax as oa
from oa_jax import experiment as experiment_lib
from oa_jax import presets
from oa_jax.backbones import known
from oa_jax.configuration import value_of
from oa_jax.data import store
from oa_jax.errors import UserError
from oa_jax.evaluation import SPLITS
from oa_jax.events.log import make_log
from oa_jax.runs import run as run_lib
from oa_jax.runs.run import environment

TINY = {
    "data.world.n_users": 40,
    "data.world.n_items": (24, 30),
    "data.world.topics": 2,
    "data.world.min_length": 8,
    "data.world.max_length": 12,
    "evaluate.n_negatives": 10,
    "evaluate.block_users": 16,
    "train.n_negatives": 4,
    "train.probe_users": 7,
}


def resolve(argument="", **changes):
    """configs/abxi.py with changes `a__b=value`."""
    config = presets.load(f"configs/abxi.py:{argument}")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return known.resolve(config)


def build(**changes):
    return experiment_lib.build(resolve("pair=synthetic", **TINY | changes))


@pytest.fixture(scope="module")
def experiment():
    return build()


def test_the_first_line_says_how_many_train():
    """Where that is not all: of 60 users 20 are of one domain."""
    changes = {"data__world__single": (10, 10)}
    for users, expected in (("all", ": 60 users, 24+30"), ("overlap", ": 60 users, of which 40 ")):
        one = build(data__users=users, **changes)
        assert expected in run_lib.describe(one, environment(one))


def test_quirks_reach_what_they_switch():
    official, corrected = build(), build(protocol="corrected")
    assert official.data.task.pool_b_from_last_a and not corrected.data.task.pool_b_from_last_a
    assert (official.evaluation.tie_weight, corrected.evaluation.tie_weight) == (0.0, 0.5)
    assert official.engine.settings.backbone.quirks.q3_attend_to_padding
    assert not corrected.engine.settings.backbone.quirks.q3_attend_to_padding
    assert official.engine.settings.backbone.quirks.q19_mean_over_all_users
    assert not corrected.engine.settings.backbone.quirks.q19_mean_over_all_users
    mixed = build(protocol="corrected", quirks__q10_ties_favour_target=True)
    assert mixed.evaluation.tie_weight == 0.0 and not mixed.data.task.pool_b_from_last_a


MISTAKES = {
    "seeds": 0,
    "protocol": "fixed",
    "seed_axis": "pmap",
    "train__learning_rate": 0.0,
    "train__n_negatives": 0,
    "model__dropout": 1.0,
    "model__temperature": float("nan"),
    "gca__positions": (1, 0),
    "gca__source": "nobody",
    "model__heads": 3,
    "train__warmup_epochs": 24,
    "data__split": "random",
    "evaluate__users_per_kind": -1,
}


@pytest.mark.parametrize("field", MISTAKES)
def test_a_mistake_names_its_field(field):
    value = MISTAKES[field]
    with pytest.raises(UserError, match=rf"--config\.{field.replace('__', '.')}=.*: expected"):
        resolve(**{field: value})


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("gca=middle", "gca=middle"), ("size=books", "size=books"), ("colour=red", "'colour'")],
)
def test_a_wrong_argument_of_the_file_is_named(argument, expected):
    with pytest.raises(UserError, match=expected):
        resolve(argument)


def test_padded_fills_whole_blocks_and_marks_them(experiment):
    for split in SPLITS:
        rows = dict(experiment.evaluation.rows[split])
        padded, seen = experiment.evaluation.padded(rows), rows.pop("seen")
        assert set(padded) == {*rows, "real", "seen_row", "seen_item"}
        n_rows = len(rows["target"])
        assert n_rows == 40 and len(padded["real"]) == 48
        assert padded["real"].tolist() == [True] * n_rows + [False] * 8
        for name, values in rows.items():
            np.testing.assert_array_equal(padded[name][:n_rows], values)
            assert not padded[name][n_rows:].any()
        row, item = (padded[name].reshape(3, -1) for name in ("seen_row", "seen_item"))
        found = [item[k // 16][row[k // 16] == k % 16].tolist() for k in range(48)]
        assert found == [*(one.tolist() for one in seen), *[[]] * 8]
    exact = {name: v[:32] for name, v in rows.items()}
    assert len(experiment.evaluation.padded(exact)["real"]) == 32


def test_one_program_ranks_both_splits(experiment):
    """Test users have seen an item more than validation users."""
    of = experiment.evaluation
    shapes = [{k: v.shape for k, v in of.padded(of.rows[split]).items()} for split in SPLITS]
    assert shapes[0] == shapes[1]
    widths = [of.rows[split]["seen"].width(of.block_users) for split in SPLITS]
    assert widths[0] < widths[1] and shapes[0]["seen_row"] == (3 * widths[1],)


@pytest.mark.parametrize(("wanted", "found"), [(7, 7), (1, 1), (40, 40), (1000, 40)])
def test_probe_users_are_evenly_spaced(wanted, found):
    experiment = build(train__probe_users=wanted)
    probe = experiment.train_arrays()["probe"]
    users = np.asarray(probe["user"])[np.asarray(probe["real"])]
    assert len(users) == len(set(users.tolist())) == found
    gaps = np.diff(users)
    assert (gaps > 0).all() and (len(gaps) == 0 or gaps.max() - gaps.min() <= 1)
    assert users[0] == 0 and (wanted == 1 or users[-1] == 39)


def test_training_sees_no_test_target(experiment):
    arrays = experiment.train_arrays()
    assert set(arrays) == {"train", "val", "probe"}
    test = experiment.evaluation.rows["test"]
    for user, target in zip(test["user"], test["target"], strict=True):
        assert target not in np.asarray(arrays["val"]["seq_x"])[user]
        assert target not in np.asarray(arrays["train"]["gt"])[user]


def candidates(split, **changes):
    return build(**changes).evaluation.rows[split]["candidates"]


@pytest.mark.parametrize("split", SPLITS)
def test_candidates_do_not_know_the_training(experiment, split):
    """Same whatever the seeds, the model or the training; other for other data."""
    usual = experiment.evaluation.rows[split]["candidates"]
    for changes in ({"first_seed": 100}, {"seeds": 2}, {"train__batch_size": 8}):
        np.testing.assert_array_equal(candidates(split, **changes), usual)
    assert not np.array_equal(candidates(split, data__world__seed=1), usual)
    other = experiment.evaluation.rows["val" if split == "test" else "test"]["candidates"]
    assert not (other[:, 1:] == usual[:, 1:]).all(1).any()


def test_candidates_of_a_are_the_same_in_both_protocols(experiment):
    """Only Q1 changes candidates, and only those of B."""
    rows = experiment.evaluation.rows["test"]
    corrected = build(protocol="corrected")
    in_a = rows["domain"] == 0
    found = corrected.evaluation.rows["test"]["candidates"]
    np.testing.assert_array_equal(found[in_a], rows["candidates"][in_a])
    assert not np.array_equal(found[~in_a], rows["candidates"][~in_a])
    again = build(protocol="corrected", quirks__q1_pool_b_from_last_a=True)
    np.testing.assert_array_equal(again.evaluation.rows["test"]["candidates"], rows["candidates"])


def test_identity_shows_data_and_candidates(experiment):
    usual = experiment.identity()
    assert set(usual) == {"data", "candidates_val", "candidates_test"}
    assert build(first_seed=5).identity() == usual
    other = build(data__world__seed=1).identity()
    assert all(other[name] != value for name, value in usual.items())
    fewer = build(evaluate__n_negatives=9).identity()
    assert fewer["data"] == usual["data"] and fewer["candidates_test"] != usual["candidates_test"]


def test_fewer_users_keep_their_candidates(experiment):
    """`evaluate.users_per_kind` chooses rows; what is in them, and training, stays."""
    world = {"data__world__single": (9, 8)}
    usual, fewer = build(**world), build(**world, evaluate__users_per_kind=5)
    for split in SPLITS:
        rows, chosen = usual.evaluation.rows[split], fewer.evaluation.rows[split]
        assert len(rows["user"]) == 57 and len(chosen["user"]) == 15
        kind = np.digitize(chosen["user"], (40, 49))
        assert np.bincount(kind).tolist() == [5, 5, 5]
        at = np.searchsorted(rows["user"], chosen["user"])
        for name in ("target", "seq_x", "candidates"):
            np.testing.assert_array_equal(chosen[name], rows[name][at])
    np.testing.assert_array_equal(
        fewer.data.task.train_arrays()["gt"], usual.data.task.train_arrays()["gt"]
    )
    assert fewer.identity()["data"] == usual.identity()["data"]
    assert fewer.identity()["candidates_test"] != usual.identity()["candidates_test"]


def test_hparams_are_one_per_seed(experiment):
    hparams = experiment.hparams()
    fields = experiment_lib.traced_fields(experiment.config)
    assert set(hparams) == set(fields) and {"learning_rate", "temperature"} <= set(fields)
    for name, field in fields.items():
        expected = np.float32(value_of(experiment.config, field))
        assert hparams[name].shape == (5,) and (np.asarray(hparams[name]) == expected).all()


def test_too_many_candidates_name_the_field():
    with pytest.raises(UserError, match="evaluate.n_negatives"):
        candidates("test", evaluate__n_negatives=25)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("pair=beauty_elec", 8_821_760),
        ("pair=food_kitchen", 9_651_200),
        ("pair=beauty_elec,gca=early", 8_821_760 + 2_102_784),
        ("pair=beauty_elec,gca=stack", 8_821_760 + 2 * 2_102_784),
    ],
)
def test_the_official_numbers_of_parameters(argument, expected):
    """The official counts, from shapes alone; two LoRA ranks and table sizes differ."""
    n_items = (10379, 14188) if "beauty" in argument else (11837, 16258)
    backbone = known.parts(resolve(argument)).backbone(n_items, None)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_the_split_of_the_data_is_the_default():
    """Which one that is stands in the configuration of the experiment, so that a run stores it."""
    assert config_of_split({}) == "leave_one_out"
    role = np.tile([0, 0, 0, 1, 2], 30)
    assert config_of_split({}, role) == "published"
    assert config_of_split({"data.split": "leave_one_out"}, role) == "leave_one_out"


def test_a_set_without_times_is_not_split_by_them():
    item = np.arange(150) % 20 + 1 + 20 * (np.arange(150) % 2)
    user = np.repeat(np.arange(30), 5)
    log = make_log(user, item, np.arange(150) % 5 * 10 + user, (20, 20), "toy")
    config = resolve("pair=synthetic", **TINY | {"data.split": "global_time"})
    for times in (store.ORDER, "unix seconds"):
        of_set = dataclasses.replace(log, origin=types.SimpleNamespace(times=times))
        if times == store.ORDER:
            with pytest.raises(UserError, match="=global_time: toy has no times: expected another"):
                experiment_lib.load(config, of_set)
        else:
            experiment_lib.load(config, of_set)


def config_of_split(changes, role=None):
    rng = np.random.default_rng(0)
    item = rng.integers(1, 21, 150) + 20 * (np.arange(150) % 2)
    log = make_log(np.repeat(np.arange(30), 5), item, np.arange(150), (20, 20), "toy", role)
    config = resolve("pair=synthetic", **TINY | {"gca.positions": ()} | changes)
    return experiment_lib.build(config, log).config.data.split


BEYOND = {
    "model.d_embed": 2_000_000,
    "model.d_ffn": 10**9,
    "model.length": 10**7,
    "gca.gate_hidden": 10**9,
    "train.batch_size": 10**9,
    "evaluate.block_users": 10**9,
    "evaluate.block_items": 2 * 10**9,
    "evaluate.n_negatives": 10**9,
    "data.world.n_users": 10**9,
}


@pytest.mark.parametrize("field", BEYOND)
def test_a_size_beyond_the_machine_is_named_before_anything_is_made(field):
    config = oa.config(gca="early", runlocal=True, **{field: BEYOND[field]})
    said = rf"^--config.{field}={BEYOND[field]}: needs at least [\d,]+ GiB .* the [\d,]+ GiB here$"
    with pytest.raises(UserError, match=said):
        experiment_lib.build(config)


def test_a_size_that_no_program_counts_to_is_refused():
    for field in ("evaluate.block_items", "train.max_epochs"):
        with pytest.raises(UserError, match=f"{field}=1{'0' * 12}: expected .* below 2"):
            oa.config(**{field: 10**12})


def test_more_probe_users_than_there_are_is_all_of_them():
    evaluation = experiment_lib.build(oa.config(runlocal=True)).evaluation
    n_users = len(evaluation.rows["val"]["target"])
    probe = evaluation.arrays(10**9)["probe"]
    assert probe["real"].sum() == n_users and set(probe["user"][probe["real"]]) == set(
        evaluation.rows["val"]["user"]
    )
