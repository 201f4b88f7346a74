"""A run of the backbone that a module's `BACKBONE` names, trained once."""

import pytest
import toy


@pytest.fixture(scope="module")
def experiment(request):
    return toy.small_experiment(request.module.BACKBONE, "pair=synthetic,gca=early")


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """(workdir, final states) of an uninterrupted run, concluded."""
    return toy.train_whole(experiment, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def check_going_on(experiment, whole, bitwise, tmp_path):
    """Function that fails unless an interrupted run ends like that one, bit for bit."""

    def check():
        path, states = whole
        again, said = toy.train_interrupted(experiment, tmp_path)
        assert said[0] == "going on after epoch 1"
        assert bitwise(again, states)
        rows = [(p / "metrics.jsonl").read_text() for p in (path, tmp_path)]
        assert rows[0] == rows[1] and len(rows[0].splitlines()) == 8

    return check
