# shellcheck shell=bash
# Sourced by the scripts beside it. Goes to the repository root and defines
#   prepare_venv WHAT    the environment with WHAT installed, e.g. '.' or '.[dev]'
#   use_python PYTHON    before it: the environment of that interpreter instead of .venv
#   VENV_PYTHON          the environment's interpreter, relative to the root

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV=.venv
VENV_PYTHON=$VENV/bin/python
INTERPRETERS=(python3.13 python3.12 python3.11 python3) # that may make it, the first that can
# shellcheck source-path=SCRIPTDIR source=_steps.sh
source launch/_steps.sh

# Whether $1 runs, is new enough and can import module $2.
usable() {
  "$1" -c "import sys, $2; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1
}

# An interpreter of an environment is used with what is installed there; any other makes .venv-X.Y.
use_python() {
  usable "$1" sys || fail "PYTHON=$1: expected an interpreter of Python 3.11 or newer"
  if "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; then
    VENV=
    VENV_PYTHON=$1
  else
    VENV=.venv-$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    VENV_PYTHON=$VENV/bin/python
    INTERPRETERS=("$1")
  fi
}

make_venv() {
  local python
  for python in "${INTERPRETERS[@]}"; do
    # Some systems ship Python without ensurepip; such a one cannot make an environment.
    if usable "$python" ensurepip; then
      echo "Making $VENV with $("$python" --version)"
      "$python" -m venv "$VENV"
      return
    fi
  done
  local tried="${INTERPRETERS[*]}"
  fail "no Python 3.11 or newer with venv found (tried ${tried// /, })"
}

prepare_venv() {
  [[ -n $VENV ]] || return 0
  local what=$1
  local stamp="$VENV/installed-${what//[^a-z]/}"
  [[ -e $VENV ]] || make_venv
  usable "$VENV_PYTHON" pip ||
    fail "$PWD/$VENV has no working Python 3.11 or newer with pip: remove it and run this again"
  # Installed since pyproject.toml last changed: nothing to do, and no network needed.
  if [[ "$stamp" -nt pyproject.toml ]]; then
    return
  fi
  echo "Installing oa-jax and what it needs into $VENV (minutes the first time)"
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV_PYTHON" -m pip install --no-input -qq -e "$what"
  touch "$stamp"
}
