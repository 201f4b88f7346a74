import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from analysis import intervene, orthogonality, restore
from analysis.runs import read_run
from oa_jax.errors import UserError
from oa_jax.runs import stored
from oa_jax.runs.workdir import Workdir
from tests.analysis import _made_runs as made

OLD, NEW = made.STEPS


def restored(path, experiment, which="best", say=None):
    return list(restore.parameters(read_run(path), experiment, which, say or made.Said()))


def same(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_best_last_and_every_kept_step(finished, stack):
    states = {step: made.drawn(stack, step) for step in made.STEPS}
    (best,), (last,) = restored(finished, stack, "best"), restored(finished, stack, "last")
    kept = restored(finished, stack, "all")
    assert same(best.params, states[NEW].best_params) and best.kind == "best"
    assert same(last.params, states[NEW].params) and last.kind == "last"
    assert [k.checkpoint for k in kept] == [OLD, NEW] and {k.kind for k in kept} == {"kept"}
    assert same(kept[0].params, states[OLD].params) and same(kept[1].params, last.params)
    assert not same(best.params, last.params) and not same(kept[0].params, kept[1].params)
    np.testing.assert_array_equal(best.epoch_S, [NEW - 1, NEW - 2, NEW - 3])
    np.testing.assert_array_equal(last.epoch_S, [NEW] * 3)
    assert best.good_S.all()
    assert same(best.of_seed(1), jax.tree.map(lambda a: a[1], states[NEW].best_params))


def test_nothing_is_written_and_the_lock_is_left_alone(copied, stack):
    before = made.contents(copied)
    with Workdir(copied):  # a run under way
        restored(copied, restore.experiment_of(read_run(copied), made.Said()), "all")
    (copied / ".lock").unlink()
    assert made.contents(copied) == before
    (copied / "config.json").write_text("{}")
    assert made.contents(copied) != before


def test_an_unfinished_run_is_restored_as_well(copied, stack):
    (copied / "summary.json").unlink()
    (copied / "ranks.npz").unlink()
    assert restored(copied, stack)[0].checkpoint == NEW


DAMAGE = {
    "half of a step": lambda step: shutil.rmtree(step / "best"),
    "data gone": lambda step: [shutil.rmtree(step / item / "d") for item in ("best", "state")],
    "manifest gone": lambda step: [
        (step / item / "manifest.ocdbt").unlink() for item in ("best", "state")
    ],
    "all but the folder": lambda step: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in step.iterdir()
    ],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_walks_back_over_a_damaged_step_and_says_so(copied, stack, kind):
    DAMAGE[kind](copied / "checkpoints" / str(NEW))
    said = made.Said()
    (found,) = restored(copied, stack, say=said)
    assert found.checkpoint == OLD and same(found.params, made.drawn(stack, OLD).best_params)
    assert f"step {NEW} cannot be read" in said
    assert (copied / "checkpoints" / str(NEW)).is_dir()  # left as it is


def test_every_step_but_the_damaged_one(copied, stack):
    DAMAGE["all but the folder"](copied / "checkpoints" / str(OLD))
    said = made.Said()
    assert [k.checkpoint for k in restored(copied, stack, "all", said)] == [NEW]
    assert f"step {OLD} cannot be read" in said and len(said.lines) == 1


def test_without_a_readable_step_it_is_an_error_of_one_line(copied, stack, tmp_path):
    for step in made.STEPS:
        DAMAGE["all but the folder"](copied / "checkpoints" / str(step))
    for which in restore.WHICH:
        with pytest.raises(UserError, match="no checkpoint can be read") as error:
            restored(copied, stack, which)
        assert "\n" not in str(error.value)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        restored(copied, stack)


def test_a_run_under_way_replaces_its_steps_while_they_are_read(copied, stack, monkeypatch):
    read, first = stored.checkpoint.read, copied / "checkpoints"
    shutil.move(first / str(NEW), copied / "newer")

    def replacing(directory, epoch, *args, **more):
        if (copied / "newer").exists():  # between listing and reading
            shutil.rmtree(directory / str(OLD))
            shutil.move(copied / "newer", directory / str(NEW))
        return read(directory, epoch, *args, **more)

    monkeypatch.setattr(stored.checkpoint, "read", replacing)
    said = made.Said()
    assert restored(copied, stack, say=said)[0].checkpoint == NEW
    assert f"step {OLD} cannot be read" in said


def test_parameters_of_another_shape_cannot_be_read(finished, copied):
    wider = made.make_experiment(model__d_embed=16)
    said = made.Said()
    with pytest.raises(UserError, match="no checkpoint can be read"):
        restored(copied, wider, say=said)
    assert f"step {NEW} cannot be read (" in said


@pytest.mark.parametrize("finite", [True, False])
def test_a_diverged_seed_is_named_and_marked(stack, tmp_path, finite):
    path = made.make_workdir(tmp_path / "run", stack, made.diverged(1, finite), finished=False)
    said = made.Said()
    (found,) = restored(path, stack, say=said)
    np.testing.assert_array_equal(found.good_S, [True, False, True])
    why = "it diverged" if finite else "its parameters are not finite"
    assert f"seed 1 left out at step {NEW}: {why}" in said and len(said.lines) == 1
    if not finite:  # only its best parameters are bad
        assert restored(path, stack, "last")[0].good_S.all()


def test_untrained_parameters_are_those_of_training(stack):
    start = restore.initial(stack)
    states = stack.engine.create(stack.seeds, stack.hparams())
    assert same(start.params, states.params) and start.kind == "init"
    assert (start.epoch_S == 0).all() and start.good_S.all()


def edited(path, change):
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))
    return read_run(path)


def test_fields_of_later_versions_are_filled_in_and_said(copied, stack):
    run = edited(copied, lambda c: (c["gca"].pop("gate_inner"), c["train"].pop("writers")))
    said = made.Said()
    experiment = restore.experiment_of(run, said)
    assert experiment.config == stack.config
    assert "gca.gate_inner, train.writers taken from the defaults" in said
    said = made.Said()
    restore.experiment_of(edited(copied, lambda c: c.update(stack.config.to_dict())), said)
    assert said.lines == []


def test_a_run_on_events_in_memory_is_measured_with_them(copied, stack):
    run, log = edited(copied, lambda c: c["data"].update(name="mine")), stack.data.log
    said, asked = made.Said(), {"parts": ("zero",), "scales": (1.0,), "draws": 100}
    for measure in (
        orthogonality.measure,
        lambda *of, **how: intervene.intervene(*of, **how, **asked),
    ):
        assert len(measure(run, say=said, data=log)) > 0
        with pytest.raises(UserError, match="found 'mine'"):
            measure(run, say=said)
    other = dataclasses.replace(log, time=log.time + 1)
    with pytest.raises(UserError, match="data fingerprint"):
        restore.experiment_of(run, said, data=other)


def test_a_bad_field_is_named_with_its_file(copied):
    with pytest.raises(UserError, match=r"config.json: .*gca.source=both: expected one of"):
        edited(copied, lambda c: c["gca"].update(source="both"))
    with pytest.raises(UserError, match="backbone=other"):
        edited(copied, lambda c: c.update(backbone="other"))


def test_other_data_than_the_run_began_with_are_refused(copied):
    env = json.loads((copied / "env.json").read_text())
    env["fingerprints"]["data"] = "0" * 16
    (copied / "env.json").write_text(json.dumps(env))
    with pytest.raises(UserError, match="data fingerprint"):
        restore.experiment_of(read_run(copied), made.Said())
    (copied / "env.json").unlink()
    restore.experiment_of(read_run(copied), made.Said())  # nothing to compare with
