#!/usr/bin/env bash
# Runs the quickstart, in .venv, which it makes when missing.
#   launch/quickstart.sh --help    arguments go to oa_jax.quickstart; paths count from the root
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

prepare_venv .
exec "$VENV_PYTHON" -m oa_jax.quickstart "$@"
