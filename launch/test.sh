#!/usr/bin/env bash
# Checks style and imports and runs the tests, in .venv, which it makes when missing.
#   launch/test.sh                     everything
#   launch/test.sh -m 'not slow' -x    arguments go to pytest; paths count from the root
#   launch/test.sh --python=python3.13 with another interpreter, as does PYTHON=python3.13: in
#                                      .venv-3.13, or, if it belongs to an environment, in that
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

python=${PYTHON:-}
arguments=()
for word in "$@"; do
  if [[ $word == --python=* ]]; then python=${word#*=}; else arguments+=("$word"); fi
done
[[ -z $python ]] || use_python "$python"

prepare_venv '.[dev]'
"$VENV_PYTHON" -m ruff check
"$VENV_PYTHON" -m ruff format --check
if grep -q '^\[tool\.importlinter' pyproject.toml; then
  "$(dirname "$VENV_PYTHON")/lint-imports"
fi
# A few processes, one file at a time each: what a file compiles once, its tests share. In the
# order of tests/conftest.py.
exec "$VENV_PYTHON" -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
  ${arguments[@]+"${arguments[@]}"}
