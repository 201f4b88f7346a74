# shellcheck shell=bash
# Sourced by the scripts beside it. Goes to the repository root and defines
#   prepare_venv WHAT    .venv with WHAT installed, e.g. '.' or '.[dev]'
#   VENV_PYTHON          its interpreter, relative to the root

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV_PYTHON=.venv/bin/python
# shellcheck source-path=SCRIPTDIR source=_steps.sh
source launch/_steps.sh

# Whether $1 runs, is new enough and can import module $2.
usable() {
  "$1" -c "import sys, $2; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1
}

make_venv() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    # Some systems ship Python without ensurepip; such a one cannot make an environment.
    if usable "$python" ensurepip; then
      echo "Making .venv with $("$python" --version)"
      "$python" -m venv .venv
      return
    fi
  done
  fail "no Python 3.11 or newer with venv found (tried python3.13, python3.12, python3.11, python3)"
}

prepare_venv() {
  local what=$1
  local stamp=".venv/installed-${what//[^a-z]/}"
  [[ -e .venv ]] || make_venv
  usable "$VENV_PYTHON" pip ||
    fail "$PWD/.venv has no working Python 3.11 or newer with pip: remove it and run this again"
  # Installed since pyproject.toml last changed: nothing to do, and no network needed.
  if [[ "$stamp" -nt pyproject.toml ]]; then
    return
  fi
  echo "Installing oa-jax and what it needs into .venv (minutes the first time)"
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV_PYTHON" -m pip install --no-input -qq -e "$what"
  touch "$stamp"
}
