#!/usr/bin/env bash
# Checks style and runs the tests, in .venv, which it makes when missing.
#   launch/test.sh                     everything
#   launch/test.sh -m 'not slow' -x    arguments go to pytest; paths count from the root
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

prepare_venv '.[dev]'
"$VENV_PYTHON" -m ruff check
"$VENV_PYTHON" -m ruff format --check
# A few processes, one file at a time each: what a file compiles once, its tests share. In the
# order of tests/conftest.py.
exec "$VENV_PYTHON" -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
