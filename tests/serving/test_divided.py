"""Lists with item tables divided among devices are those with whole ones, ties included."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from _runs import run_of

pytestmark = pytest.mark.slow

TESTS = pathlib.Path(__file__).parents[1]


def test_lists_of_divided_tables():
    script = TESTS / "toys" / "divided_lists.py"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(TESTS.parent)}
    result = subprocess.run(
        [sys.executable, script, run_of("abxi")[1]], capture_output=True, text=True, env=env
    )
    assert result.returncode == 0, result.stderr
    for name, (whole, divided) in json.loads(result.stdout).items():
        assert whole == divided, name
