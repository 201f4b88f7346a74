"""The axis `table`: embedding tables divided by rows, on eight virtual CPU devices."""

import numpy as np
import pytest

from tests.engine.test_devices import ask

pytestmark = pytest.mark.slow

# Two seeds; 55 rows of items, which neither 2 nor 4 divides, and one of padding; 8 wide.
N_ITEMS, N_ROWS, WIDTH = 55, 56, 8
WHOLE, DIVIDED = "seed:2", {"table:4": 4, "data:2,table:2": 2}
# Both meshes divide batches by four.
CASES = [
    ("abxi", "table:4"),
    ("llm4cdsr", "data:2,table:2"),
    ("cdsrnp", "data:2,table:2"),
    ("sasrec", "table:4"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    questions = [f"tables/{backbone}/{WHOLE}/{mesh}" for backbone, mesh in CASES]
    return ask(tmp_path_factory.mktemp("tables"), "rows", *questions)


@pytest.fixture(scope="module")
def runs(answers):
    """Function backbone -> {mesh: answer}"""
    return {
        question.split("/")[1]: answer for question, answer in answers.items() if "/" in question
    }.get


@pytest.mark.parametrize(("backbone", "mesh"), CASES)
def test_every_device_holds_its_rows_only(runs, backbone, mesh):
    """Parameters, best parameters and both moments. (All axes, and whole epochs: test_devices.)"""
    found = runs(backbone)
    assert found[mesh]["parts"] and found[WHOLE]["parts"]
    assert all(part * DIVIDED[mesh] == whole for whole, part in found[mesh]["parts"])
    assert all(whole == part for whole, part in found[WHOLE]["parts"])
    if backbone != "llm4cdsr":  # there items are frozen, and the domains' tables are trained
        assert [whole for whole, _ in found[mesh]["parts"]] == [N_ROWS]


@pytest.mark.parametrize(("backbone", "mesh"), CASES)
def test_ranks_of_the_same_parameters_are_the_same(runs, backbone, mesh):
    found, expected = (runs(backbone)[m]["ranks of the first"] for m in (mesh, WHOLE))
    assert found == expected
    one, two = expected["full"]
    assert one != two and max(one) > 10


@pytest.mark.parametrize(("backbone", "mesh"), CASES)
def test_training_is_the_same(runs, backbone, mesh):
    """The last loss has seen what the steps before it made of the tables."""
    found, expected = (np.array(runs(backbone)[m]["losses"]) for m in (mesh, WHOLE))
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0) / expected[0]).max() > 3e-4  # twin: another seed


@pytest.mark.parametrize(("backbone", "mesh"), CASES)
def test_no_collective_moves_a_table(runs, backbone, mesh):
    """What is sent belongs to a batch, or is a device's part of a gradient."""
    shapes = runs(backbone)[mesh]["shapes"]
    assert shapes and runs(backbone)[WHOLE]["shapes"] == []  # seeds apart: nothing at all
    wide = [shape for shape in shapes if shape[-1] == WIDTH]
    assert wide and not any({N_ITEMS, N_ROWS} & set(shape[:-1]) for shape in wide)
    if mesh == "table:4":  # and no batch is added up with another
        assert not any(N_ROWS // 4 in shape[:-1] for shape in wide)


def check_rows(found, expected):
    assert [(r["epoch"], r["seed"]) for r in found] == [(r["epoch"], r["seed"]) for r in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=5e-5, abs=5e-5), (key, row["seed"])


def test_a_run_goes_on_with_tables_divided_otherwise(answers):
    joined, divided = answers["rows"]["joined"], answers["rows"]["divided"]
    assert (joined["n_rows"], divided["n_rows"]) == (N_ITEMS, N_ROWS)
    assert joined["ended"] == divided["ended"] == [3, 3]
    check_rows(joined["rows"], divided["rows"])
    # As read from the checkpoint, without padding.
    items = np.array([joined["items"], divided["items"]])
    assert items.shape == (2, 2, N_ITEMS, WIDTH)
    np.testing.assert_allclose(*items, atol=1e-4)
    assert np.abs(items[0, 0] - items[0, 1]).max() > 1e-2
