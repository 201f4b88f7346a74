"""The axis `table`: embedding tables divided by rows, on eight virtual CPU devices."""

import numpy as np
import pytest
from test_devices import ask

pytestmark = pytest.mark.slow

# Two seeds, 55 rows of items and one of padding, 8 wide.
N_ITEMS, N_ROWS, WIDTH = 55, 56, 8
WHOLE, *DIVIDED = ("seed:1", "table:4", "data:2,table:2")
PARTS = {"table:4": 14, "data:2,table:2": 28}


@pytest.fixture(scope="module", params=["abxi", "llm4cdsr", "cdsrnp"])
def runs(request, tmp_path_factory):
    return ask("tables", request.param, tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize("mesh", DIVIDED)
def test_every_device_holds_its_rows_only(runs, mesh):
    """Parameters, best parameters and both moments."""
    parts = {whole: part for whole, part in runs[mesh]["parts"]}
    assert all(part * (4 if mesh == "table:4" else 2) == whole for whole, part in parts.items())
    assert PARTS[mesh] in parts.values() or N_ROWS not in parts
    assert all(whole == part for whole, part in runs[WHOLE]["parts"])


@pytest.mark.parametrize("mesh", DIVIDED)
def test_ranks_of_the_same_parameters_are_the_same(runs, mesh):
    found, expected = runs[mesh]["ranks of the first"], runs[WHOLE]["ranks of the first"]
    assert found == expected
    one, two = expected["test/full/rank"]
    assert one != two and max(one) > 10


@pytest.mark.parametrize("mesh", DIVIDED)
def test_training_is_the_same(runs, mesh):
    found, expected = runs[mesh]["rows"], runs[WHOLE]["rows"]
    check_rows(found, expected)
    losses = [row["train/loss"] for row in expected[-2:]]
    assert abs(losses[0] - losses[1]) > 3e-4 * losses[0]  # another seed is further away


def check_rows(found, expected):
    assert [(r["epoch"], r["seed"]) for r in found] == [(r["epoch"], r["seed"]) for r in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=5e-5, abs=5e-5), (key, row["seed"])


@pytest.mark.parametrize("mesh", DIVIDED)
def test_no_collective_moves_a_table(runs, mesh):
    """What is sent belongs to a batch: no array has the rows of a table, whole or in parts."""
    shapes = runs[mesh]["shapes"]
    assert shapes and runs[WHOLE]["shapes"] == []
    of_tables = {N_ROWS, N_ITEMS, PARTS[mesh]}
    for shape in shapes:
        moved = shape[-1] == WIDTH and (set(shape[:-1]) & of_tables)
        assert not moved, shape


def test_a_run_goes_on_with_tables_divided_otherwise(tmp_path):
    found = ask("rows", tmp_path)
    assert [found[k]["n_rows"] for k in ("whole", "joined", "divided")] == [55, 55, 56]
    for name in ("joined", "divided"):
        check_rows(found[name]["rows"], found["whole"]["rows"])
        items = np.asarray(found[name]["items"])
        assert items.shape == (2, N_ITEMS, WIDTH)  # as read from the checkpoint, without padding
        np.testing.assert_allclose(items, found["whole"]["items"], atol=1e-4)
