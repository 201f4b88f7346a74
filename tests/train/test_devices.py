"""Seeds spread over four CPU devices, each check in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import toy

pytestmark = pytest.mark.slow

SCRIPT = toy.ROOT / "tests" / "train" / "devices.py"


def ask(*arguments):
    """The answer of devices.py in a process with four CPU devices."""
    variables = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(toy.ROOT),
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_device_is_four_devices():
    """A program of one seed a device and a program of four seeds: equal to rounding.

    Not bitwise: XLA batches four seeds differently from one. The differences seen are 6e-8.
    """
    answer = ask("numbers")
    assert answer["devices"] == [4, 1]
    assert answer["largest"] < 1e-5
    assert answer["between_seeds"] > 0.05  # twin: other seeds differ by more


def test_the_sharded_epoch_has_no_collective():
    answer = ask("hlo")
    assert answer["partitions"] == 4
    assert answer["epoch"] == []
    assert answer["mean"]  # twin: a mean over seeds does communicate, and is found


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return ask("uneven", tmp_path_factory.mktemp("uneven"))


@pytest.mark.parametrize("axis", ["vmap", "map"])
def test_compaction_changes_the_number_of_devices(uneven, axis):
    """Four seeds use four devices, three use three: the parts must still be joined and saved."""
    assert uneven[f"{axis} begun"] == "interrupted"
    assert isinstance(uneven[f"{axis} whole"], list), uneven
    assert len(set(uneven[f"{axis} whole"])) > 1
