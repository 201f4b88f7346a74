"""Layouts of seeds and batches over devices, without devices."""

import dataclasses

import jax
import numpy as np
import pytest

from oa_jax.configuration import mesh_sizes
from oa_jax.engine.mesh import Layout
from oa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int = 0


def devices(number, processes=1):
    return tuple(Device(i, i * processes // number) for i in range(number))


def test_texts_of_a_mesh():
    texts = ("", "seed:2,data:3", "data:3,seed:2", "seed:4", "data:8", "table:3,seed:2")
    expected = [None, (2, 3, 1), (2, 3, 1), (4, 1, 1), (1, 8, 1), (2, 1, 3)]
    assert [mesh_sizes(t) for t in texts] == expected


@pytest.mark.parametrize("text", ["seed", "seed:0", "seed:-1", "seed:2,", ",", "seed:2,seed:2"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        mesh_sizes(text)


@pytest.mark.parametrize("text", ["batch:2", "seed:2;data:2", "2,2", "seed:1.5", "seed: 2"])
def test_other_axes_and_marks_are_refused(text):
    with pytest.raises(ValueError):
        mesh_sizes(text)


# Devices, seeds -> (seed, data), slots: a device for every seed first, then parts of batches.
DEFAULTS = [
    ((1, 1), (1, 1), 1),
    ((1, 5), (1, 1), 5),
    ((4, 5), (4, 1), 8),
    ((4, 4), (4, 1), 4),
    ((4, 3), (4, 1), 4),
    ((4, 2), (2, 2), 2),
    ((4, 1), (1, 4), 1),
    ((8, 5), (8, 1), 8),
    ((8, 3), (4, 2), 4),
    ((6, 7), (6, 1), 12),
    ((6, 2), (2, 3), 2),
]


@pytest.mark.parametrize(("given", "sizes", "slots"), DEFAULTS)
def test_the_default_layout(given, sizes, slots):
    number, n_seeds = given
    layout = Layout.of("", devices(number))
    found = layout.mesh(n_seeds)
    assert (found.shape["seed"], found.shape["data"]) == sizes
    assert layout.slots(n_seeds) == slots
    assert layout.mesh(slots) == found  # padding does not change the mesh
    assert found.devices.ravel().tolist() == list(layout.devices)  # all, in their order


def test_a_given_mesh_is_taken_for_any_number_of_seeds():
    layout = Layout.of("seed:2,data:2", devices(4))
    assert [layout.slots(n) for n in (1, 2, 3, 5)] == [2, 2, 4, 6]
    found = [dict(layout.mesh(n).shape) for n in (1, 2, 3, 5)]
    assert found == [{"seed": 2, "data": 2, "table": 1}] * 4
    assert [layout.table_size, Layout.of("table:4", devices(4)).table_size] == [1, 4]


@pytest.mark.parametrize("axis", [0, 1])
def test_divided_tables_get_rows_of_zeros(axis):
    shape = (2, 5, 3)[1 - axis :]
    tree = {"items": np.ones(shape), "bias": np.ones(shape)}
    layout = Layout.of("table:4", devices(4))
    found = layout.with_rows(tree, axis)
    assert found["bias"].shape == shape
    assert found["items"].shape == (*shape[:axis], 8, 3)
    assert float(found["items"].sum()) == tree["items"].sum()
    shapes = jax.eval_shape(lambda: tree)
    assert layout.with_rows(shapes, axis)["items"].shape == found["items"].shape
    assert layout.with_rows(found, axis)["items"] is found["items"]
    assert Layout.of("data:4", devices(4)).with_rows(tree, axis) is tree


def test_a_batch_gets_slots_that_the_devices_of_a_seed_share_evenly():
    layout = Layout.of("seed:2,data:24", devices(48))
    assert layout.even((96, 928), 2) == (96, 936)
    assert Layout(devices(8)).even((96, 928), 8) == (96, 928)  # a seed has one device


def test_fewer_devices_than_there_are_will_do_in_one_process():
    assert Layout.of("seed:2", devices(4)).devices == devices(4)[:2]
    with pytest.raises(UserError, match="^--config.mesh=seed:2: 2 devices: found 4: .* all"):
        Layout.of("seed:2", devices(4, processes=2))


def test_too_few_devices_are_one_line():
    with pytest.raises(UserError, match="^--config.mesh=seed:3,data:2: 6 devices: found 4: "):
        Layout.of("seed:3,data:2", devices(4))
