#!/usr/bin/env bash
# Trains on this machine, on all its accelerators or on its CPU, in .venv, which it makes.
#   launch/local.sh [--dry-run] --config=configs/abxi.py:pair=beauty_elec,gca=early --workdir=DIR …
# All other arguments go to `python -m oa_jax train`; paths count from the repository root.
# EXTRA (default: by what the machine has) is the extra of pyproject.toml to install: cuda, tpu, or
# none. A run that is given again goes on; one that ends with status 75 has saved and may be given
# again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
take_dry_run "$@"

extra_of_machine() {
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    echo cuda
  elif compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    echo tpu
  else
    echo none
  fi
}

[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "expected the arguments of oa_jax train: --config=… --workdir=…"
extra=${EXTRA:-$(extra_of_machine)}
case $extra in
  cuda | tpu) what=".[$extra]" ;;
  none) what=. ;;
  *) fail "EXTRA=$extra: expected cuda, tpu or none" ;;
esac

step "install oa-jax into .venv (extra: $extra)"
run prepare_venv "$what"
if [[ $extra != none && -z ${JAX_PLATFORMS:-} ]] && ! $DRY_RUN; then
  need "jax sees no accelerator (CUDA 13 needs driver 580): why says $VENV_PYTHON -c 'import jax; jax.devices()'; EXTRA=none trains on the CPU" \
    "$VENV_PYTHON" -c 'import jax; assert jax.default_backend() != "cpu"'
fi
step "train, on every device that jax sees"
# In the place of this script, so that who stops it stops the training. Status 75: saved, the same command resumes it.
run exec "$VENV_PYTHON" -m oa_jax train "${ARGUMENTS[@]}"
