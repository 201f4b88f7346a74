"""The analysis under its installed name, oa_jax_analysis, and what is packaged."""

import json
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from tests.analysis._plain import plain_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_packaged(settings):
    rooms = {path.parent.relative_to(ROOT) for path in (ROOT / "oa_jax").rglob("__init__.py")}
    rooms = {".".join(room.parts) for room in rooms}
    apart = {"oa_jax.configs", "oa_jax.configs.studies"}
    apart |= {"oa_jax_analysis", "oa_jax_analysis.published"}
    assert set(settings["packages"]) == rooms | apart
    assert settings["package-dir"]["oa_jax.configs"] == "configs"
    assert settings["package-dir"]["oa_jax_analysis"] == "analysis"


CHECK = """
import sys
from oa_jax_analysis.runs import find_runs
runs, _ = find_runs(sys.argv[1])
runs[0].seeds(), runs[0].epochs(), runs[0].ranks()
assert "jax" not in sys.modules, "reading a run imports JAX"
from oa_jax_analysis import published, report, table
assert len(table.gains(runs, draws=100)[0]) and published.paper()["paper"]
foreign = [n for n in sys.modules if n == "analysis" or n.startswith("analysis.")]
assert not foreign, foreign
"""


@pytest.mark.slow
def test_the_installed_name_works_and_reading_a_run_imports_no_jax(tmp_path):
    """As package-dir puts it: the same files under another name, away from the checkout."""
    (tmp_path / "oa_jax_analysis").symlink_to(ROOT / "analysis", target_is_directory=True)
    (tmp_path / "oa_jax").symlink_to(ROOT / "oa_jax", target_is_directory=True)
    run = plain_run(tmp_path / "run", "early")
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    argv = [sys.executable, "-c", CHECK, str(run)]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_published_files_are_data_of_the_package(settings):
    globs = settings["package-data"]["oa_jax_analysis.published"]
    folder = ROOT / "analysis" / "published"
    packaged = {path for pattern in globs for path in folder.glob(pattern)}
    assert packaged == set(folder.rglob("*.json"))
    assert json.loads((folder / "paper.json").read_text())["data"]["models"]
