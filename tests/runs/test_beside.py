"""Processes beside this one."""

import os

import pytest
import toy

from oa_jax.runs.beside import beside, share_machine
from oa_jax.runs.workdir import Workdir


def commands(folder):
    config = f"--config={toy.ROOT}/configs/abxi.py:runlocal"
    return {folder / "run.log": ["train", config, f"--workdir={folder}/run", "--config.seeds=1"]}


@pytest.mark.slow
def test_it_is_finished_when_the_block_is_left(tmp_path):
    with beside(commands(tmp_path), print):
        pass
    assert Workdir(tmp_path / "run").is_finished
    assert "results in" in (tmp_path / "run.log").read_text()


def test_another_that_fails_is_told_of(tmp_path):
    said = []
    with beside({tmp_path / "run.log": ["train", "--workdir=x"]}, said.append):
        pass
    assert said[-1] == (
        f"another process ended with status 2: what it said is in {tmp_path / 'run.log'}"
    )


def test_it_ends_with_the_block_that_fails(tmp_path):
    with pytest.raises(KeyError), beside(commands(tmp_path), print):
        raise KeyError
    assert not Workdir(tmp_path / "run").is_finished


def test_it_ends_with_a_wait_that_is_interrupted(tmp_path):
    def told_to_leave(line):
        raise KeyError

    with pytest.raises(KeyError), beside(commands(tmp_path), told_to_leave):
        pass
    assert not Workdir(tmp_path / "run").is_finished


@pytest.mark.parametrize(
    ("cpus", "backend", "most"), [(8, "cpu", 8), (1, "cpu", 1), (8, "gpu", 8), (8, "tpu", 1)]
)
def test_processes_share_cpus_and_gpu_and_no_tpu(cpus, backend, most, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cpus), raising=False)
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("os.environ", {})
    assert share_machine(2) == most
    shares = {"NPROC": str(max(1, cpus // 2)), "XLA_CLIENT_MEM_FRACTION": "0.450"}
    assert os.environ == shares
    monkeypatch.setattr("os.environ", given := {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2"})
    share_machine(2)
    assert given == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2", "NPROC": shares["NPROC"]}
