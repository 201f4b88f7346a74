"""Two real processes as one run: one is killed, both are told to leave, one process ends it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import toy

pytestmark = pytest.mark.slow

COMMAND = toy.ROOT / "tests" / "toys" / "toy_command.py"
N_EPOCHS, N_SEEDS, LIMIT = 12, 3, 900
CHANGES = (
    toy.SMALL
    | toy.OWN["abxi"]
    | {
        "seeds": N_SEEDS,  # of four devices: one holds a padding slot
        "model.dropout": 0.2,
        "train.max_epochs": N_EPOCHS,
        "train.checkpoint_every": 2,
        "gca.positions": (),
    }
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Function (workdir, number of processes, devices of each, command) -> the processes."""
    cache = tmp_path_factory.mktemp("xla")

    def begin(path, number=2, devices=2, name="train"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = [f"--config.{name}={value}" for name, value in CHANGES.items()]
        variables = {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(toy.ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
            f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, str(COMMAND), name, f"--workdir={path}"]
        if name == "train":
            command += ["--config=configs/abxi.py:pair=synthetic,runlocal", *flags]
        of_each = [f"--distributed=127.0.0.1:{port},{number},{i}" for i in range(number)]
        return [
            subprocess.Popen(
                [*command, which if number > 1 else "--distributed=auto"],
                cwd=toy.ROOT,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for which in of_each
        ]

    return begin


def ends(processes, limit=LIMIT):
    """[(exit status, stdout, stderr)]; those that don't end in time are killed."""
    deadline, out = time.monotonic() + limit, []
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
        out.append((process.wait(), *process.communicate()))
    return out


def wait_for_epoch(processes, path, epoch):
    """Return once metrics.jsonl has the rows of `epoch`, and what is there."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            raise AssertionError("\n".join(map(str, ends(processes, 0))))
        rows = (path / "metrics.jsonl").read_bytes() if (path / "metrics.jsonl").exists() else b""
        if rows.count(b"\n") >= (epoch + 1) * N_SEEDS:
            return rows
        time.sleep(0.005)
    raise AssertionError("the epoch never came")


def said(process, words):
    """The line of standard output that has `words`, once it is there."""
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(process.communicate())


def of_ours(text):
    """Its lines, but for Gloo's, whose threads write into each other's."""
    return [line for line in text.splitlines() if "[Gloo]" not in line and "peer ranks" not in line]


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    outcome = ends(start(path))
    assert [status for status, _, _ in outcome] == [0, 0], outcome
    return path, outcome


def test_told_to_leave_while_it_waits_for_the_others_it_ends_at_once(start, tmp_path):
    """By the signal, as there is nothing to save: status 143 to a shell, which Slurm's script
    queues again."""
    (alone, other) = start(tmp_path / "run")
    other.kill()
    other.communicate()
    time.sleep(10)  # into the meeting, or before it
    alone.send_signal(signal.SIGTERM)
    alone.communicate(timeout=20)
    assert alone.returncode == -signal.SIGTERM


def test_only_the_first_process_talks_and_padding_is_not_reported(whole):
    path, outcome = whole
    assert "results in" in outcome[0][1]
    assert of_ours(outcome[1][1]) == []
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    expected = [(e, s) for e in range(N_EPOCHS + 1) for s in range(N_SEEDS)]
    assert [(row["epoch"], row["seed"]) for row in rows] == expected
    summary = json.loads((path / "summary.json").read_text())
    assert summary["n_seeds"] == len(summary["per_seed"]) == N_SEEDS
    with np.load(path / "ranks.npz") as ranks:
        assert ranks["seed"].tolist() == list(range(N_SEEDS))
        assert len(ranks["test/full/rank"]) == N_SEEDS
    environment = json.loads((path / "env.json").read_text())
    assert environment["processes"] == 2 and environment["mesh"] == {
        "seed": 4,
        "data": 1,
        "table": 1,
    }


def test_killed_and_told_to_leave_it_ends_like_an_undisturbed_run(whole, start, tmp_path):
    path = tmp_path / "run"
    # SIGKILL to one of two in mid-epoch; a launcher then ends the other, if it does not itself.
    processes = start(path)
    cut_off = wait_for_epoch(processes, path, 3)
    while not (path / "checkpoints" / "2").exists():
        time.sleep(0.005)
    processes[1].kill()
    killed = ends(processes, limit=20)
    assert killed[1][0] == -signal.SIGKILL and killed[0][0] != 0, killed
    assert not (path / "summary.json").exists()
    # Both again, from a checkpoint; SIGTERM to one before the first epoch, and both save after it,
    # or, on a busy machine, after one of the next: a signal that is lost would let them end.
    processes = start(path)
    epoch = int(re.search(r"going on after epoch (\d+)", said(processes[0], "going on"))[1])
    for _ in range(2):  # as `timeout` and Slurm send it
        processes[1].terminate()
    left = ends(processes)
    assert [status for status, _, _ in left] == [75, 75], left
    saved = re.search(r"is saved after epoch (\d+): the same command goes on there", left[0][2])
    assert saved and epoch < int(saved[1]) < N_EPOCHS, left
    assert "interrupted" not in left[1][2]
    # One process with all four devices ends the run.
    ((status, out, err),) = ends(start(path, number=1, devices=4))
    assert status == 0 and "going on after epoch" in out, err
    expected = (whole[0] / "metrics.jsonl").read_bytes()
    assert (path / "metrics.jsonl").read_bytes() == expected
    assert cut_off != expected and expected.startswith(cut_off)  # twin: it had not ended
    with np.load(path / "ranks.npz") as found, np.load(whole[0] / "ranks.npz") as there:
        assert found.keys() == there.keys()
        assert all(np.array_equal(found[name], there[name]) for name in there)
    # And two rank it as the one did.
    (path / "summary.json").unlink()
    outcome = ends(start(path, name="evaluate"))
    assert [status for status, _, _ in outcome] == [0, 0], outcome
    assert "ranks equal the stored ones" in outcome[0][1] and "NDCG@10" in outcome[0][1]
    assert not of_ours(outcome[1][1])
    assert (path / "summary.json").exists()
