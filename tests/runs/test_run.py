"""The command as a process of its own, killed and told to leave, and started again."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy

from oa_jax.backbones import known
from oa_jax.errors import UserError
from oa_jax.runs import run as run_lib
from oa_jax.runs.checkpoint import Checkpoints
from oa_jax.runs.workdir import Workdir, listed

pytestmark = pytest.mark.slow

COMMAND = toy.ROOT / "tests" / "toys" / "toy_command.py"
N_EPOCHS = 8
CHANGES = {
    "seeds": 2,
    "model.dropout": 0.2,
    "train.max_epochs": N_EPOCHS,
    "train.checkpoint_every": 2,
}
LIMIT = 900  # seconds that a process may take on a busy machine


def train(path, moment=None):
    """(exit status, stdout, stderr) of the command. moment: as of toy_command.py."""
    flags = [f"--config.{k}={v}" for k, v in (toy.SMALL | toy.OWN["abxi"] | CHANGES).items()]
    command = [sys.executable, COMMAND, "train", "--config=configs/abxi.py:pair=synthetic", *flags]
    variables = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(toy.ROOT)}
    done = subprocess.run(
        [*command, f"--workdir={path}"],
        cwd=toy.ROOT,
        env=os.environ | variables | ({"TOY_SIGNAL": moment} if moment else {}),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of the undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = train(path)
    assert status == 0, err
    return path


def best_of(path):
    """Epoch of the newest checkpoint, and the steps and best parameters in it."""
    config = run_lib.stored_config(Workdir(path))
    experiment = toy.with_toy(config)
    abstract = experiment.engine.abstract(experiment.seeds, experiment.hparams())
    with Checkpoints(path / "checkpoints") as checkpoints:
        epoch, states, _ = checkpoints.restore_newest(lambda n_seeds: abstract)
    return epoch, jax.device_get((states.step, states.best_params))


def ranks_of(path):
    with np.load(path / "ranks.npz") as file:
        return dict(file)


def results(path):
    """The summary without its timings."""
    summary = json.loads((path / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name != "seconds"}


def rows_of(path):
    return (path / "metrics.jsonl").read_bytes()


def test_killed_and_told_to_leave_it_ends_bitwise_like_an_undisturbed_run(whole, tmp_path, bitwise):
    path = tmp_path / "run"
    status, _, _ = train(path, f"save:{signal.SIGKILL.value}:2")
    assert status == -signal.SIGKILL and listed(path / "checkpoints") == [2]
    assert rows_of(path) != rows_of(whole)
    # It leaves after its third epoch, and does not wait for the next checkpoint.
    status, out, err = train(path, f"epoch:{signal.SIGTERM.value}:3")
    assert status == 75 and "going on after epoch 2" in out
    assert f"interrupted: {path} is saved after epoch 5: the same command goes on" in err
    assert max(listed(path / "checkpoints")) == 5
    # In the final ranking: after the first split.
    status, _, err = train(path, f"ranking:{signal.SIGTERM.value}:1")
    assert status == 75 and "is saved after its last epoch: the same command goes on" in err
    assert not {"ranks.npz", "summary.json"} & {p.name for p in path.iterdir()}
    status, out, err = train(path)
    assert status == 0 and f"going on after epoch {N_EPOCHS}" in out, err
    assert rows_of(path) == rows_of(whole) and results(path) == results(whole)
    found, expected = ranks_of(path), ranks_of(whole)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    found, expected = best_of(path), best_of(whole)
    assert found[0] == expected[0] == N_EPOCHS and bitwise(found[1], expected[1])


def test_the_run_leaves_what_it_promises(whole):
    names = {p.name for p in whole.iterdir()} - {".lock"}
    expected = {"config.json", "env.json", "metrics.jsonl", "checkpoints", "ranks.npz"}
    assert names == expected | {"summary.json"}
    ranks = ranks_of(whole)
    for split in ("val", "test"):
        for ranking in ("uni10", "full"):
            assert ranks[f"{split}/{ranking}/rank"].shape == (2, 60)
            assert (ranks[f"{split}/{ranking}/rank"] >= 1).all()
    assert len(rows_of(whole).splitlines()) == 2 * (N_EPOCHS + 1)
    with ocp.CheckpointManager(whole / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [N_EPOCHS - 2, N_EPOCHS]


def contents(path: pathlib.Path):
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_a_finished_workdir_says_so_and_is_left_alone(whole, tmp_path):
    path, said = tmp_path / "run", []
    shutil.copytree(whole, path)
    (path / ".lock").unlink()  # opening it would be a change of its time only
    before = contents(path)
    run_lib.run(json.loads((whole / "config.json").read_text()), path, said.append)
    assert said == [f"{path} is finished: nothing to do"]
    after = contents(path)
    after.pop(".lock")
    assert after == before


def test_a_summary_that_is_none_is_refused(tmp_path):
    config = known.resolve(toy.abxi_config())
    with Workdir(tmp_path) as workdir:
        workdir.claim(config.to_dict())
        workdir.write_json("summary.json", {"label": "x"})
    with pytest.raises(UserError, match="summary.json: no field 'n_parameters'"):
        run_lib.run(config, tmp_path, print)


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    in_use = pytest.raises(UserError, match="in use by another process")
    with Workdir(tmp_path), in_use:
        run_lib.run(toy.abxi_config(), tmp_path, print)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
