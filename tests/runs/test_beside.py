"""The run that trains beside the other one."""

import pytest
import toy

from oa_jax.runs.beside import beside
from oa_jax.runs.workdir import Workdir


def arguments(workdir):
    config = f"{toy.ROOT}/configs/abxi.py:runlocal"
    return [f"--config={config}", f"--workdir={workdir}", "--config.seeds=1"]


@pytest.mark.slow
def test_it_is_finished_when_the_block_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with beside(tmp_path / "run", arguments(tmp_path / "run"), print):
        pass
    assert Workdir(tmp_path / "run").is_finished
    said = (tmp_path / "run.log").read_text()
    assert "results in" in said
    with beside(tmp_path / "run", arguments(tmp_path / "run"), print):  # nothing is left to do
        pass
    assert (tmp_path / "run.log").read_text() == said


@pytest.mark.parametrize(("cores", "backend"), [(1, "cpu"), (2, "cpu"), (2, "gpu")])
def test_it_ends_with_the_block_that_fails(tmp_path, cores, backend, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    with pytest.raises(KeyError), beside(tmp_path / "run", arguments(tmp_path / "run"), print):
        raise KeyError
    assert not Workdir(tmp_path / "run").is_finished
    assert (tmp_path / "run.log").exists() == (cores == 2 and backend == "cpu")


def test_it_ends_with_a_wait_that_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def told_to_leave(line):
        if line.startswith("waiting"):
            raise KeyError

    run = beside(tmp_path / "run", arguments(tmp_path / "run"), told_to_leave)
    with pytest.raises(KeyError), run:
        pass
    assert not Workdir(tmp_path / "run").is_finished
