"""The axis `table`: embedding tables divided by rows, on eight virtual CPU devices."""

import functools

import numpy as np
import pytest

from tests.engine.test_devices import ask

pytestmark = pytest.mark.slow

# Two seeds; 55 rows of items, which neither 2 nor 4 divides, and one of padding; 8 wide.
N_ITEMS, N_ROWS, WIDTH = 55, 56, 8
WHOLE, DIVIDED = "seed:1", {"table:4": 4, "data:2,table:2": 2}
# Both meshes divide batches by four.
CASES = [("abxi", "table:4"), ("llm4cdsr", "data:2,table:2"), ("cdsrnp", "data:2,table:2")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function backbone -> {mesh: answer}"""

    @functools.cache
    def of(backbone):
        meshes = [mesh for name, mesh in CASES if name == backbone]
        return ask("tables", backbone, tmp_path_factory.mktemp("tables"), WHOLE, *meshes)

    return of


@pytest.mark.parametrize(("backbone", "mesh"), CASES)
def test_every_device_holds_its_rows_only(runs, backbone, mesh):
    """Parameters, best parameters and both moments."""
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
    found, expected = (runs(backbone)[m]["rows"] for m in (mesh, WHOLE))
    check_rows(found, expected)
    losses = [row["train/loss"] for row in expected[-2:]]
    assert abs(losses[0] - losses[1]) > 3e-4 * losses[0]  # another seed is further away


@pytest.mark.parametrize(("backbone", "mesh"), CASES)
def test_no_collective_moves_a_table(runs, backbone, mesh):
    """What is sent belongs to a batch, or is a device's part of a gradient."""
    shapes = runs(backbone)[mesh]["shapes"]
    assert shapes and runs(backbone)[WHOLE]["shapes"] == []
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


def test_a_run_goes_on_with_tables_divided_otherwise(tmp_path):
    found = ask("rows", tmp_path)
    joined, divided = found["joined"], found["divided"]
    assert (joined["n_rows"], divided["n_rows"]) == (N_ITEMS, N_ROWS)
    assert joined["ended"] == divided["ended"] == [3, 3]
    check_rows(joined["rows"], divided["rows"])
    # As read from the checkpoint, without padding.
    items = np.array([joined["items"], divided["items"]])
    assert items.shape == (2, 2, N_ITEMS, WIDTH)
    np.testing.assert_allclose(*items, atol=1e-4)
    assert np.abs(items[0, 0] - items[0, 1]).max() > 1e-2
