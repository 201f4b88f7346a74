"""Workdirs that the tests of the analysis share."""

import shutil

import pytest

from tests.analysis import _made_runs as made


@pytest.fixture(scope="session")
def stack():
    """A small experiment with GCA at two places, three seeds."""
    return made.make_experiment()


@pytest.fixture(scope="session")
def finished(stack, tmp_path_factory):
    """The finished workdir of `stack`. To be looked at only."""
    return made.make_workdir(tmp_path_factory.mktemp("made") / "stack", stack)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it that a test may break."""
    return shutil.copytree(finished, tmp_path / "stack")
