"""quickstart.sh and test.sh over an environment that only says what it was asked for."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.launch._scripts import LAUNCH, ROOT, calls, script, stand_in

# Stands for the Python of an environment: answers questions (-c), makes environments, and leaves
# of the quickstart and of the analysis what they would.
ENVIRONMENT = """
case "$*" in
  -c*) exec {real} "$@" ;;
  *--version) echo Python 3 ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *quickstart*--help*) echo flags ;;
  *"oa_jax quickstart"*) {quickstart} ;;
  *"analysis report"*) mkdir -p "{runs}/report" && echo page >"{runs}/report/report.html" ;;
esac
"""
FINISH = """
for run in baseline gca_early; do
  [[ -e "{0}/$run" ]] || {{ mkdir -p "{0}/$run" && touch "{0}/$run/summary.json"; }}
done
"""


@pytest.fixture
def checkout(tmp_path):
    """Function (folder of the quickstart's runs, real Python) -> a checkout with its .venv."""

    def make(runs="runs/quickstart", real=sys.executable, quickstart=None):
        shutil.copytree(LAUNCH, tmp_path / "launch")
        (tmp_path / "pyproject.toml").write_text("[tool.other]\n")
        folder = tmp_path / ".venv" / "bin"
        folder.mkdir(parents=True)
        quickstart = quickstart or FINISH.format(runs)
        stand_in(folder, "python", ENVIRONMENT.format(real=real, quickstart=quickstart, runs=runs))
        return tmp_path

    return make


def modules_called(checkout):
    """What was run with -m."""
    return [call for call in calls(checkout / ".venv" / "bin", "python") if call.startswith("-m")]


@pytest.mark.parametrize(
    ("argv", "runs"),
    [([], "runs/quickstart"), (["--workdir=w"], "w"), (["--redundancy=1", "--workdir", "w"], "w")],
)
def test_the_quickstart_ends_with_the_page(checkout, argv, runs):
    root = checkout(runs)
    result = script("quickstart.sh", *argv, launch=root / "launch")
    assert result.returncode == 0, result.stderr
    install, quickstart, report = modules_called(root)
    assert install.endswith("-e .[analysis]")
    assert quickstart.split() == ["-m", "oa_jax", "quickstart", *argv]
    assert report == (
        f"-m analysis report --fast --runs={runs}/baseline,{runs}/gca_early --out={runs}/report"
    )
    assert f"The page: {runs}/report/report.html" in result.stdout
    assert result.stdout.count("\n  .venv/bin/python -m ") == 3
    # Again: nothing is installed, and no page is drawn.
    assert script("quickstart.sh", *argv, launch=root / "launch").returncode == 0
    assert len(modules_called(root)) == 4


def test_a_newer_run_gets_a_new_page(checkout):
    root = checkout()
    script("quickstart.sh", launch=root / "launch")
    page = root / "runs" / "quickstart" / "report" / "report.html"
    os.utime(page, (1, 1))
    script("quickstart.sh", launch=root / "launch")
    assert "analysis report" in modules_called(root)[-1]


def test_help_of_the_quickstart_runs_nothing(checkout):
    root = checkout()
    result = script("quickstart.sh", "--help", launch=root / "launch")
    assert result.stdout.endswith("flags\n") and "The page" not in result.stdout
    assert not (root / "runs").exists()


def test_a_quickstart_that_fails_draws_no_page(checkout):
    root = checkout(quickstart="exit 75")
    result = script("quickstart.sh", launch=root / "launch")
    assert result.returncode == 75 and "The page" not in result.stdout
    assert not any("-m analysis" in call for call in modules_called(root))


def test_the_quickstart_finds_its_experiment_from_any_folder(tmp_path):
    code = "from oa_jax import presets\nprint(presets.load('configs/abxi.py').backbone)"
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (result.returncode, result.stdout) == (0, "abxi\n"), result.stderr


def test_style_imports_and_tests(checkout):
    root = checkout()
    lint = stand_in(root / ".venv" / "bin", "lint-imports", "exit 0")
    result = script("test.sh", "-m", "not slow", launch=root / "launch", PYTHON="")
    assert result.returncode == 0, result.stderr
    called = modules_called(root)
    assert called[0].endswith("-e .[dev]")
    assert called[1:3] == ["-m ruff check", "-m ruff format --check"]
    assert called[3].startswith("-m pytest ") and called[3].endswith(" -m not slow")
    assert calls(lint.parent, "lint-imports") == []  # no contract, nothing to check
    (root / "pyproject.toml").write_text("[tool.importlinter]\n")
    stand_in(root / ".venv" / "bin", "lint-imports", "exit 1")
    assert script("test.sh", launch=root / "launch", PYTHON="").returncode == 1
    assert len(calls(lint.parent, "lint-imports")) == 1
    assert len([call for call in modules_called(root) if "pytest" in call]) == 1


@pytest.mark.parametrize("said", ["argument", "variable"])
def test_tests_of_another_interpreter(checkout, said):
    """One that belongs to no environment gets .venv-X.Y; one that does is used as it is."""
    root = checkout(real=sys._base_executable)
    named = root / "python3.x"
    shutil.copy(root / ".venv" / "bin" / "python", named)
    version = "{}.{}".format(*sys.version_info[:2])
    argv = [f"--python={named}", "-x"] if said == "argument" else ["-x"]
    variable = {"PYTHON": "" if said == "argument" else str(named)}
    result = script("test.sh", *argv, launch=root / "launch", **variable)
    assert result.returncode == 0, result.stderr
    made = root / f".venv-{version}"
    assert (made / "bin" / "python").exists() and (made / "installed-dev").exists()
    assert modules_called(root)[-1].endswith(" -x") and "--python" not in modules_called(root)[-1]


def test_an_environment_of_ones_own_is_left_as_it_is(checkout):
    root = checkout()
    own = root / ".venv" / "bin" / "python"  # its answers are those of the tests' environment
    result = script("test.sh", f"--python={own}", launch=root / "launch", PYTHON="")
    assert result.returncode == 0, result.stderr
    assert not any("pip" in call for call in modules_called(root))
    assert sorted(path.name for path in root.glob(".venv*")) == [".venv"]


def test_an_interpreter_that_is_none_is_refused(checkout):
    root = checkout()
    result = script("test.sh", "--python=nothing", launch=root / "launch", PYTHON="")
    assert result.returncode == 2
    said = "error: PYTHON=nothing: expected an interpreter of Python 3.11 or newer\n"
    assert result.stderr == said and not modules_called(root)
