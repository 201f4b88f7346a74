"""The host loop: compaction, rows, going on, broken checkpoints."""

import json
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import pytest
import toy

from oa_jax import errors, processes
from oa_jax.engine.program import Engine, take_seeds
from oa_jax.runs import loop, training
from oa_jax.runs.checkpoint import SUMS, Checkpoints
from oa_jax.runs.metrics_file import MetricsFile
from oa_jax.runs.workdir import Workdir

UNEVEN = {
    "seeds": 4,
    "seed_axis": "map",
    "train__max_epochs": 8,
    "train__stop_patience": 0,
    "train__plateau_patience": 0,
    "train__learning_rate": 0.03,
    "train__compaction": True,
}


def train(path, say=lambda line: None, notice=None, **overrides):
    """Run the loop in a workdir -> (experiment, final states)."""
    experiment = toy.toy_experiment(**overrides)
    with Workdir(path) as workdir:
        return experiment, loop.train(experiment, workdir, say, notice)[0]


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    path = tmp_path_factory.mktemp("uneven")
    return path, *train(path, **UNEVEN)


@pytest.fixture(scope="module")
def unstopped(uneven):
    """The same seeds trained to the last epoch whatever happens: states after each epoch."""
    _, experiment, _ = uneven
    engine, arrays = experiment.engine, experiment.train_arrays()
    states, after = engine.create(experiment.seeds, experiment.hparams()), []
    for epoch in range(experiment.config.train.max_epochs):
        going_on = states.replace(done=jnp.zeros(4, bool))
        states, _ = engine.epoch(going_on, arrays, engine.capacity(experiment.seeds, epoch))
        after.append(jax.device_get(states))
    return after


def test_uneven_stopping_is_what_it_is_without_compaction(uneven, unstopped, bitwise):
    _, _, states = uneven
    last = states.epoch.tolist()
    assert len(set(last)) > 1, "choose a world in which the seeds stop unevenly"
    for slot in range(4):
        found = take_seeds(states, slot)
        assert found.done and bitwise(found, take_seeds(unstopped[last[slot] - 1], slot))
        # Twin: an epoch less is another state.
        assert not bitwise(found, take_seeds(unstopped[last[slot] - 2], slot))


def test_stopped_seeds_in_the_program_stay_as_they_are(uneven, tmp_path, bitwise):
    whole, _, states = uneven
    _, found = train(tmp_path, **UNEVEN | {"train__compaction": False})
    assert bitwise(found, states)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_row_per_epoch_and_running_seed(uneven):
    path, _, states = uneven
    found = [(row["epoch"], row["seed"]) for row in rows_of(path)]
    last = states.epoch.tolist()
    expected = [(e, s) for e in range(max(last) + 1) for s in range(4) if e <= last[s]]
    assert found == expected
    for row in rows_of(path):
        assert ("train/loss" in row) == (row["epoch"] > 0)
        assert row["val/A/users"] + row["val/B/users"] == 60


class Interrupted(Exception):
    pass


def interrupt_at(epoch):
    def say(line):
        if line.startswith(f"epoch {epoch:3d}"):
            raise Interrupted

    return say


def begun(path, epoch, **overrides):
    """A workdir whose run was interrupted in the given epoch, after its rows."""
    with pytest.raises(Interrupted):
        train(path, interrupt_at(epoch), **overrides)
    return path


@pytest.mark.parametrize(("at", "every"), [(1, 1), (4, 1), (4, 3), (2, 5)])
def test_going_on_gives_the_same_run(uneven, tmp_path, bitwise, at, every):
    whole, _, states = uneven
    changes = UNEVEN | {"train__checkpoint_every": every}
    begun(tmp_path, at, **changes)
    assert (tmp_path / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()
    said = []
    _, found = train(tmp_path, said.append, **changes)
    kept = (at - 1) // every * every
    assert (said[0] == f"going on after epoch {kept}") == (kept > 0)
    assert bitwise(found, states)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("every", "long", "kept"), [(1, 20.0, 3), (2, 20.0, 4), (5, 0.0, 3)])
def test_a_long_epoch_is_given_up_where_all_before_it_is_saved(
    uneven, tmp_path, bitwise, monkeypatch, every, long, kept
):
    """Told to leave in its fourth epoch, which ends after all notices if nobody waits for it."""
    whole, _, states = uneven
    changes, notice = UNEVEN | {"train__checkpoint_every": every}, processes.Notice()

    def epoch(self, states, *args):
        states, report = train_epoch(self, states, *args)
        if states.epoch.max() == 4:
            notice._receive(signal.SIGTERM, None)
            if kept == 3:
                states = states.replace(done=types.SimpleNamespace(is_ready=lambda: False))
        return states, report

    train_epoch = Engine.epoch
    monkeypatch.setattr(Engine, "epoch", epoch)
    monkeypatch.setattr(loop, "GRACE_S", 0.0)
    monkeypatch.setattr(training, "LONG_S", long)
    with pytest.raises(errors.Interrupted, match=f"is saved after epoch {kept}$"):
        train(tmp_path, notice=notice, **changes)
    monkeypatch.undo()
    said = []
    _, found = train(tmp_path, said.append, **changes)
    assert said[0] == f"going on after epoch {kept}"
    assert bitwise(found, states)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_the_comparison_notices_another_seed(uneven, tmp_path, bitwise):
    """Twin."""
    whole, _, states = uneven
    _, found = train(tmp_path, **UNEVEN, first_seed=7)
    assert not bitwise(found.best_params, states.best_params)
    assert (tmp_path / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()


def test_a_cut_off_last_row_is_written_again(uneven, tmp_path):
    whole, _, _ = uneven
    begun(tmp_path, 3, **UNEVEN)
    path = tmp_path / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text[: -len(text.splitlines()[-1]) // 2])
    train(tmp_path, **UNEVEN)
    assert path.read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def at_three(tmp_path_factory):
    """A run with checkpoints 2 and 3, interrupted in epoch 4."""
    path = tmp_path_factory.mktemp("at_three")
    return begun(path, 4, **UNEVEN)


BREAKS = {
    "state": lambda step: shutil.rmtree(step / "state"),
    "best": lambda step: shutil.rmtree(step / "best"),
    "seconds": lambda step: shutil.rmtree(step / "seconds"),
    "manifest": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "metadata of state": lambda step: (step / "state" / "_METADATA").unlink(),
    "data of best": lambda step: (
        [shutil.rmtree(d) for d in (step / "best").glob("ocdbt.process*")]
        + [shutil.rmtree(d, ignore_errors=True) for d in (step / "best").glob("d")]
    ),
    "metadata of step": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "everything": lambda step: [shutil.rmtree(d) for d in step.iterdir() if d.is_dir()],
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_half_deleted_newest_checkpoint_is_walked_back_from(
    uneven, at_three, tmp_path, bitwise, kind
):
    whole, _, states = uneven
    path = tmp_path / "run"
    shutil.copytree(at_three, path)
    names = sorted(p.name for p in (path / "checkpoints").iterdir() if p.name.isdecimal())
    assert names == ["2", "3"]
    (path / "checkpoints" / "3" / SUMS).unlink()  # which would tell before anything is read
    BREAKS[kind](path / "checkpoints" / "3")
    said = []
    _, found = train(path, said.append, **UNEVEN)
    # Some files are dispensable; then step 3 is read after all, and must be whole.
    *aside, going_on = said[: 1 + said[0].startswith("checkpoint 3 cannot be read")]
    assert going_on == f"going on after epoch {2 if aside else 3}"
    assert bitwise(found, states)
    assert (path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def newest(path):
    experiment = toy.toy_experiment(**UNEVEN)
    abstract = experiment.engine.abstract(experiment.seeds, experiment.hparams())
    with Checkpoints(path / "checkpoints") as checkpoints:
        epoch, states, seconds = checkpoints.restore_newest(lambda n_seeds: abstract)
    return epoch, states.replace(hparams=experiment.hparams()), seconds


def test_the_last_checkpoint_holds_the_end_of_the_run(uneven, bitwise):
    path, _, states = uneven
    epoch, found, _ = newest(path)
    assert epoch == max(states.epoch.tolist())
    assert bitwise(found, states)


def test_checkpoints_that_take_seconds_are_rare(tmp_path, monkeypatch):
    now, takes = [0.0], [0.1]

    def saved(*args):
        now[0] += takes[0]

    clock = types.SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: 0.0)
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(training, "RARE", 20)  # toy.py
    monkeypatch.setattr(training.Training, "states", lambda self, inside: None)
    experiment = toy.toy_experiment()
    with Workdir(tmp_path) as workdir, training.Training(experiment, workdir, print) as run:
        monkeypatch.setattr(run.checkpoints, "save", saved)
        run.save({})
        assert run.is_due(0.1)
        takes[0] = 3.0
        run.save({})
        now[0] += 59.0
        assert not run.is_due(0.1) and run.is_due(training.LONG_S)
        now[0] += 1.5
        assert run.is_due(0.1)
        takes[0] = 0.1
        run.save({})  # a stall counts once
        assert run.is_due(0.1)
        # Of several processes the first decides: their clocks differ.
        for name, value in {"several": True, "is_first": False}.items():
            monkeypatch.setattr(processes, name, lambda value=value: value)
        monkeypatch.setattr(processes, "_from_first", lambda answer: {"value": False})
        assert not run.is_due(0.1)
        monkeypatch.undo()


def test_after_walking_back_the_broken_step_is_saved_again(uneven, tmp_path, bitwise):
    """A later evaluation reads the newest checkpoint: it must be the end of the run again."""
    whole, _, states = uneven
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    last = max(states.epoch.tolist())
    shutil.rmtree(path / "checkpoints" / str(last) / "best")
    _, found = train(path, **UNEVEN)
    assert bitwise(found, states)
    epoch, stored, _ = newest(path)
    assert epoch == last
    assert bitwise(stored, states)


def test_without_any_readable_checkpoint_it_says_so(at_three, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(at_three, path)
    for step in ("2", "3"):
        BREAKS["everything"](path / "checkpoints" / step)
    with pytest.raises(Exception, match="no checkpoint of this workdir can be read"):
        train(path, **UNEVEN)


def test_lines_for_people(tmp_path):
    said = []

    def stop(line):
        said.append(line)
        raise Interrupted

    with pytest.raises(Interrupted):
        train(tmp_path, stop, **UNEVEN)
    assert len(said) == 1 and said[0].startswith("epoch   1  val ndcg@10 A/B  0:0.")
    assert "steps/s" in said[0]


def test_a_line_of_many_seeds_has_their_spread():
    rows, name = MetricsFile(toy.toy_experiment(), None), "ndcg@10/uni10"
    rows.newest = [
        {"epoch": 1, "seed": s, "diverged_step": 0, "best_epoch": int(s < 3)}
        | {f"val/A/{name}": s / 100, f"val/B/{name}": 0.5}
        for s in range(9)
    ]
    # Deviation of 0 … 8 with n - 1: √7.5.
    expected = "A/B  A 0.0400 ± 0.0274 (0.0000 to 0.0800)  B 0.5000 ± 0.0000 (0.5000 to 0.5000)  "
    assert expected + "9 seeds, 3 with a new best" in rows.line(10.0)
    rows.newest[8]["diverged_step"] = 7  # eight are left: each of them
    line = rows.line(10.0)
    assert "0:0.0000/0.5000*" in line and "7:0.0700/0.5000 " in line
    assert "seed 8 diverged at step 7" in line and "±" not in line


def test_the_time_left_is_a_bound():
    """Rounded up: half a minute left is not "0 min at most"."""
    rows = MetricsFile(toy.toy_experiment(train__max_epochs=3), None)
    left = {(1, 10.0): 1, (1, 31.0): 2, (2, 60.0): 1, (3, 10.0): 0}
    for (epoch, seconds), minutes in left.items():
        row = {"seed": 0, "diverged_step": 0, "best_epoch": 0, "epoch": epoch}
        rows.newest = [row | {f"val/{d}/ndcg@10/uni10": 0.5 for d in "AB"}]
        assert rows.line(seconds).endswith(f" {minutes} min left at most")
