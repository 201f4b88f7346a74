"""A run goes on to more seeds or epochs, and is what it would have been from the start."""

import json

import numpy as np
import pytest
import toy

import oa_jax as oa
from oa_jax import experiment as experiment_lib
from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.nn import task
from oa_jax.runs import run as run_lib
from oa_jax.runs import stored, sweep
from oa_jax.runs.workdir import Workdir

pytestmark = pytest.mark.slow

# By `map` seeds are bit for bit alone, whatever stands beside them in the program.
BASE = {"seed_axis": "map", "train__compaction": False, "seeds": 2, "train__max_epochs": 2}


@pytest.fixture(autouse=True)
def with_toy(monkeypatch):
    monkeypatch.setattr(experiment_lib, "build", lambda c, *_: toy.shared_toy(c))


def go(path, extend=False, **changes):
    said = []
    config = toy.abxi_config(**BASE | changes)
    return run_lib.run(config, path, said.append, extend=extend), said


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def are_one(path, other):
    """Whether both runs have the same rows and ranks."""
    found, expected = (dict(np.load(p / "ranks.npz")) for p in (path, other))
    same = found.keys() == expected.keys() and rows(path) == rows(other)
    return same and all(np.array_equal(found[name], expected[name]) for name in found)


# Seeds alone: in the test after this.
@pytest.mark.parametrize(
    "more", [{"train__max_epochs": 4}, {"seeds": 3, "train__max_epochs": 4}], ids=str
)
def test_more(tmp_path, more, caplog):
    go(tmp_path / "grown")
    held = oa.open(tmp_path / "grown")
    assert held.params("last", seed=1) and held.experiment is held.experiment
    with pytest.raises(UserError, match="another configuration: .*--extend goes on"):
        go(tmp_path / "grown", **more)
    summary, said = go(tmp_path / "grown", extend=True, **more)
    assert any(line.startswith("extended: ") for line in said)
    assert not any("_CHECKPOINT_METADATA" in record.getMessage() for record in caplog.records)
    whole, _ = go(tmp_path / "whole", **more)
    assert are_one(tmp_path / "grown", tmp_path / "whole")
    assert summary["mean"] == whole["mean"] and summary["n_seeds"] == whole["n_seeds"]
    assert len(held.experiment.seeds) == more.get("seeds", 2)  # what is held goes along
    assert held.params("last", seed=more.get("seeds", 2) - 1)
    stored = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert stored["seeds"] == more.get("seeds", 2)


def test_an_extension_that_was_stopped_goes_on(tmp_path):
    go(tmp_path / "grown")

    def stop(line):
        if line.startswith("epoch   1"):
            raise KeyboardInterrupt

    config = toy.abxi_config(**BASE | {"seeds": 3})
    with pytest.raises(KeyboardInterrupt):
        run_lib.run(config, tmp_path / "grown", stop, extend=True)
    grown = Workdir(tmp_path / "grown")
    with pytest.raises(UserError, match="of 2 seeds, config.json has 3: expected the extension"):
        stored.newest_states(grown.path, toy.shared_toy(run_lib.stored_config(grown)))
    go(tmp_path / "grown", seeds=3)  # without --extend: config.json has it
    go(tmp_path / "whole", seeds=3)
    assert are_one(tmp_path / "grown", tmp_path / "whole")
    go(tmp_path / "others", seeds=3, first_seed=1)
    assert not are_one(tmp_path / "others", tmp_path / "whole")  # twin


def test_an_extension_to_more_epochs_that_was_stopped_has_not_ended(tmp_path):
    """By what `evaluate` reads of it, which would else end it with the old epochs."""
    go(tmp_path)
    workdir = Workdir(tmp_path)
    ended = toy.shared_toy(run_lib.stored_config(workdir))
    epoch, states, *_ = stored.newest_states(tmp_path, ended)
    assert epoch == 2 and states.done.all()
    more = run_lib.stored_config(workdir).replace(train={"max_epochs": 4})
    workdir.claim(more.to_dict(), reopen=True)
    epoch, states, *_ = stored.newest_states(tmp_path, toy.shared_toy(more))
    assert epoch == 2 and not states.done.any()


@pytest.mark.parametrize("keep", ["best", "none"])
def test_a_run_without_a_whole_checkpoint_is_not_extended_and_stays(tmp_path, keep, monkeypatch):
    monkeypatch.setattr(sweep, "use_compilation_cache", lambda say: None)
    config = known.resolve(toy.abxi_config(**BASE))
    sweep.Sweep({"run": config}, tmp_path, lambda line: None, keep=keep).run()
    before = {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json*")}
    for more in ({"train__max_epochs": 4}, {"seeds": 3}):
        with pytest.raises(UserError, match="no whole checkpoint was kept"):
            go(tmp_path / "run", extend=True, **more)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json*")}


def test_a_damaged_step_of_more_seeds_gives_way_to_one_of_fewer(tmp_path):
    kept = {"train__keep_checkpoints": 3}
    go(tmp_path / "grown", **kept)
    go(tmp_path / "grown", extend=True, seeds=3, **kept)
    (tmp_path / "grown" / "summary.json").unlink()
    steps = {int(path.name): path for path in (tmp_path / "grown" / "checkpoints").iterdir()}
    assert set(steps) == {2, 3, 4}
    for step in (3, 4):
        next(steps[step].glob("state/**/d/*")).write_bytes(b"")
    _, said = go(tmp_path / "grown", seeds=3, **kept)
    assert any(line.startswith("going on after epoch 2") for line in said)
    go(tmp_path / "whole", seeds=3)
    assert are_one(tmp_path / "grown", tmp_path / "whole")


def test_less_is_refused_and_what_changes_no_result_is_not(tmp_path):
    go(tmp_path)
    for fewer in ({"seeds": 1}, {"train__max_epochs": 1}):
        with pytest.raises(UserError, match="another configuration"):
            go(tmp_path, extend=True, **fewer)
    before = (tmp_path / "summary.json").read_text()
    _, said = go(tmp_path, evaluate__block_items=7, train__keep_checkpoints=1, seed_axis="vmap")
    assert said == [f"{tmp_path} is finished: nothing to do"]
    assert (tmp_path / "summary.json").read_text() == before


def test_steps_of_another_length_of_epoch_are_refused(tmp_path, monkeypatch):
    go(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(task.Task, "n_steps", 7)
    with pytest.raises(UserError, match="steps in 2 epochs: expected 7 an epoch"):
        go(tmp_path, extend=True, train__max_epochs=4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
