"""The command itself, killed with SIGKILL at several moments and started again."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy

from oa_jax.experiment import build
from oa_jax.runs.checkpoint import Checkpoints, listed
from oa_jax.runs.workdir import Workdir

pytestmark = pytest.mark.slow

CONFIG = "configs/abxi.py:pair=synthetic,gca=early,runlocal"
N_EPOCHS = 8
CHANGES = {
    "seeds": 2,
    "model.d_embed": 8,
    "model.d_ffn": 8,
    "model.length": 12,
    "train.batch_size": 4,
    "train.n_negatives": 4,
    "train.max_epochs": N_EPOCHS,
    "train.probe_users": 16,
    "train.checkpoint_every": 2,
    "evaluate.n_negatives": 10,
    "evaluate.block_users": 8,
    "evaluate.block_items": 32,
    "data.world.n_users": 100,
    "data.world.n_items": (24, 30),
    "data.world.topics": 2,
    "data.world.min_length": 8,
    "data.world.max_length": 12,
}
LIMIT = 900  # seconds that a process may take on a busy machine


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Function (workdir, **changes) -> the running command. All share one cache of programs."""
    cache = tmp_path_factory.mktemp("xla")
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PLATFORMS": "cpu",
        # Half of the time to compile; all runs that are compared have it.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }

    def begin(workdir, **changes):
        values = CHANGES | {name.replace("__", "."): value for name, value in changes.items()}
        flags = [f"--config.{name}={value}" for name, value in values.items()]
        command = [sys.executable, "-m", "oa_jax.train", f"--config={CONFIG}", *flags]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=toy.ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def finish(process):
    """(exit status, stdout, stderr) of a command that runs to its end."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="session")
def whole(start, tmp_path_factory):
    """The workdir of the undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = finish(start(path))
    assert status == 0, err
    return path


def rows_at_least(count, path):
    """Whether metrics.jsonl has that many rows."""
    file = path / "metrics.jsonl"
    return file.exists() and file.read_bytes().count(b"\n") >= count


def saving(path):
    """Whether Orbax writes a checkpoint now: a folder with its temporary name."""
    return any("tmp" in p.name for p in (path / "checkpoints").glob("*"))


def concluding(path):
    """Whether training is over and the final evaluation is not."""
    return (path / "checkpoints" / str(N_EPOCHS)).exists()


# In the order of a run, so that one workdir goes through all of them.
MOMENTS = {
    "compiling the first epoch": functools.partial(rows_at_least, 2),
    "after the first epoch": functools.partial(rows_at_least, 3),
    "after the third epoch": functools.partial(rows_at_least, 7),
    "during a save": saving,
    "final evaluation": concluding,
}


def kill_when(process, reached) -> bool:
    """SIGKILL the command as soon as `reached()`; False if it ended before."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if reached():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.002)
    process.kill()
    raise AssertionError("the moment never came")


@pytest.fixture(scope="session")
def killed(start, whole, tmp_path_factory):
    """A workdir killed at every moment, one after the other, and then left to finish."""
    path = tmp_path_factory.mktemp("killed") / "run"
    hits = {}
    for name, reached in MOMENTS.items():
        process = start(path)
        hits[name] = kill_when(process, lambda reached=reached: reached(path))
    assert not (path / "summary.json").exists(), f"finished too early: {hits}"
    status, out, err = finish(start(path))
    assert status == 0, err
    return path, hits, out


def best_of(path):
    """Epoch of the newest checkpoint, and the steps and best parameters in it."""
    experiment = build(json.loads((path / "config.json").read_text()))
    abstract = experiment.engine.abstract(experiment.seeds, experiment.hparams())
    with Checkpoints(path / "checkpoints") as checkpoints:
        epoch, states, _ = checkpoints.restore_newest(abstract)
    return epoch, jax.device_get((states.step, states.best_params))


def ranks_of(path):
    with np.load(path / "ranks.npz") as file:
        return dict(file)


def same_ranks(path, other):
    found, expected = ranks_of(path), ranks_of(other)
    assert set(found) == set(expected)
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def results(path):
    """The summary without its timings."""
    summary = json.loads((path / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name != "seconds"}


def test_all_kills_hit(killed):
    _, hits, out = killed
    assert all(hits.values()), hits
    assert "going on after epoch" in out


def test_a_killed_run_ends_bitwise_like_an_undisturbed_one(killed, whole, bitwise):
    path, _, _ = killed
    assert (path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same_ranks(path, whole)
    found, expected = best_of(path), best_of(whole)
    assert found[0] == expected[0] == N_EPOCHS
    assert bitwise(found[1], expected[1])
    assert results(path) == results(whole)


def test_the_comparison_notices_another_seed(start, whole, tmp_path, bitwise):
    """Twin: seeds 1 and 2 instead of 0 and 1."""
    path = tmp_path / "run"
    assert finish(start(path, first_seed=1))[0] == 0
    assert (path / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()
    assert not same_ranks(path, whole)
    assert not bitwise(best_of(path)[1], best_of(whole)[1])


def test_the_run_leaves_what_it_promises(whole):
    names = {p.name for p in whole.iterdir()} - {".lock"}
    expected = {"config.json", "env.json", "metrics.jsonl", "checkpoints", "ranks.npz"}
    assert names == expected | {"summary.json"}
    ranks = ranks_of(whole)
    for split in ("val", "test"):
        for protocol in ("uni10", "full"):
            assert ranks[f"{split}/{protocol}/rank"].shape == (2, 100)
            assert (ranks[f"{split}/{protocol}/rank"] >= 1).all()
    assert len((whole / "metrics.jsonl").read_text().splitlines()) == 2 * (N_EPOCHS + 1)


def test_told_to_leave_it_saves_and_asks_to_be_started_again(start, whole, tmp_path):
    path, never = tmp_path / "run", {"train__checkpoint_every": 100}
    process = start(path, **never)
    deadline = time.monotonic() + LIMIT
    while not rows_at_least(6, path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.terminate()
    status, _, err = finish(process)
    (epoch,) = listed(path / "checkpoints")
    assert status == 75 and 2 <= epoch < N_EPOCHS
    assert f"interrupted: {path} is saved after epoch {epoch}: the same command goes on" in err
    assert finish(start(path, **never))[0] == 0
    assert (path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def contents(path: pathlib.Path):
    files = [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_a_finished_workdir_says_so_and_is_left_alone(start, whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / ".lock").unlink()  # opening it would be a change of its time only
    before = contents(path)
    status, out, _ = finish(start(path))
    assert status == 0 and "is finished: nothing to do" in out
    after = contents(path)
    after.pop(".lock")
    assert after == before


def one_line_error(outcome, expected):
    status, _, err = outcome
    lines = [line for line in err.splitlines() if line.strip()]
    return status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and expected in err


def test_a_second_process_on_a_workdir_is_refused(start, tmp_path):
    with Workdir(tmp_path):
        outcome = finish(start(tmp_path))
    assert one_line_error(outcome, "in use by another process"), outcome
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_steps_kept_are_the_last_ones(whole):
    with ocp.CheckpointManager(whole / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [N_EPOCHS - 2, N_EPOCHS]
