"""Several devices: on virtual CPU devices, in a process of its own."""

import json
import os
import re
import subprocess
import sys

import pytest
import toy

pytestmark = pytest.mark.slow

SCRIPT = toy.ROOT / "tests" / "toys" / "devices.py"
FIRST = "map seed:1"
OTHERS = {"map seed:4": (4, 1, 1), "vmap seed:2,data:2,table:2": (2, 2, 2), "vmap ": (4, 2, 1)}


def ask(folder, *questions):
    """The answers of devices.py in a process with eight CPU devices."""
    variables = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(toy.ROOT),
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, *questions],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return ask(tmp_path_factory.mktemp("toys"), "meshes", "hlo", "uneven")


@pytest.fixture(scope="module")
def meshes(answers):
    return answers["meshes"]


def test_the_meshes_are_what_they_are_called(meshes):
    found = {name: tuple(answer["mesh"].values()) for name, answer in meshes.items()}
    assert found == {FIRST: (1, 1, 1)} | OTHERS


@pytest.mark.parametrize("name", OTHERS)
def test_parameters_have_the_same_ranks_on_every_mesh(meshes, name):
    """Whole numbers, of every user and seed, under all rankings; padding counts nowhere."""
    assert meshes[name]["ranks of the first"] == meshes[FIRST]["ranks"]
    # Twin: the seeds' ranks differ.
    one, two, _ = meshes[FIRST]["ranks"]["test/full/rank"]
    assert one != two


@pytest.mark.parametrize("name", OTHERS)
def test_training_is_the_same_on_every_mesh(meshes, name):
    """To rounding, which the order of a sum over the batch and the shape of a program decide."""
    found, expected = meshes[name]["rows"], meshes[FIRST]["rows"]
    assert [(r["epoch"], r["seed"]) for r in found] == [(e, s) for e in (0, 1, 2) for s in range(3)]
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert value == pytest.approx(other[key], rel=2e-5, abs=2e-5), (key, row["seed"])
    assert meshes[name]["ranks"] == meshes[FIRST]["ranks"]
    # Twin: another seed is further away than that.
    losses = [row["train/loss"] for row in expected[-3:]]
    assert min(abs(losses[0] - losses[1]), abs(losses[0] - losses[2])) > 3e-4 * losses[0]


def test_an_epoch_sharded_over_seeds_has_no_collective(answers):
    """Nor have steps of the real backbones: test_tables."""
    assert answers["hlo"]["seed:4"] == {"partitions": 4, "kinds": [], "groups": []}


def test_an_epoch_over_both_axes_communicates_within_a_seed_only(answers):
    """Twin of the above: here there are collectives, and they are found."""
    found = answers["hlo"]["seed:2,data:2"]
    assert found["partitions"] == 4 and "all-reduce" in found["kinds"]
    # Devices 0, 1 hold one part of the seeds, 2, 3 the other. "[2,2]<=[4]" is {{0,1},{2,3}}.
    for groups in set(found["groups"]) - {"[2,2]<=[4]"}:
        assert groups.startswith("{{"), found  # another order of devices has another form
        for group in re.findall(r"\{([\d,]+)\}", groups):
            assert set(group.split(",")) in ({"0", "1"}, {"2", "3"}), found


def test_a_run_goes_on_on_another_mesh_and_stopped_seeds_leave_it(answers):
    """Four seeds fill two devices, and then six slots of three: padding comes and goes."""
    found = answers["uneven"]
    assert found["begun"] == "interrupted"
    assert isinstance(found["whole"], list) and len(set(found["whole"])) > 1, found
    assert found["slots"] == [6], found  # in turn, a free slot costs nothing
