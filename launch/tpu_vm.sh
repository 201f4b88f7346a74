#!/usr/bin/env bash
# A Cloud TPU slice from nothing to results:
#   launch/tpu_vm.sh [--dry-run] create|install|run|fetch|delete|all NAME [train arguments …]
#   create   the slice                 install  this commit and the data, on all workers
#   run      train, on all workers     fetch    results into OUT
#   all      create, install, run, fetch; given again it goes on (the slice stays: delete it)
# --dry-run prints the commands and calls nothing.
#   ZONE=us-west4-a  TYPE=v5litepod-8  RUNTIME=(by TYPE)  SPOT=true for preemptible capacity
#   OA_DATA_DIR=DIR  is copied to every worker, if set
#   RUNS=runs        where workdirs lie on the workers, relative to the home folder's oa-jax. A slice
#                    of several hosts needs a folder that all of them share, mounted there.
#   OUT=runs/tpu     where results are fetched to
# Example: launch/tpu_vm.sh all mine --config=configs/abxi.py:pair=food_kitchen --workdir=runs/fk
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=_steps.sh
source launch/_steps.sh
take_dry_run "$@"

action=${ARGUMENTS[0]:-}
name=${ARGUMENTS[1]:-}
flags=("${ARGUMENTS[@]:2}")
zone=${ZONE:-us-west4-a}
type=${TYPE:-v5litepod-8}
runs=${RUNS:-runs}
out=${OUT:-runs/tpu}
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "name '$name': expected ACTION NAME, NAME of letters, digits, -"
case $type in
  v5litepod-*) default_runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) default_runtime=v2-alpha-tpuv5 ;;
  v6e-*) default_runtime=v2-alpha-tpuv6e ;;
  *) default_runtime= ;;
esac
runtime=${RUNTIME:-$default_runtime}
[[ -n $runtime ]] || fail "TYPE=$type: expected v5litepod-N, v5p-N or v6e-N, or RUNTIME for another"
need "gcloud: expected the Google Cloud CLI, logged in, with a project" command -v gcloud
archive=build/oa-jax.tar.gz
tpu=(gcloud compute tpus tpu-vm)

on_workers() { # command line for a worker's shell
  run "${tpu[@]}" ssh "$name" "--zone=$zone" --worker=all "--command=$1"
}

create() {
  step "create $type '$name' in $zone"
  if ! $DRY_RUN && "${tpu[@]}" describe "$name" "--zone=$zone" >/dev/null 2>&1; then
    echo "'$name' is there"
    return
  fi
  local spot=()
  [[ ${SPOT:-false} == true ]] && spot=(--spot)
  run "${tpu[@]}" create "$name" "--zone=$zone" "--accelerator-type=$type" "--version=$runtime" \
    "${spot[@]}"
}

install() {
  step "install this commit on all workers"
  run mkdir -p build
  run git archive --format=tar.gz "--output=$archive" HEAD
  run "${tpu[@]}" scp "$archive" "$name:oa-jax.tar.gz" "--zone=$zone" --worker=all
  # The image's own Python may be older than 3.11.
  on_workers "set -e; mkdir -p oa-jax && tar xzf oa-jax.tar.gz -C oa-jax && cd oa-jax;\
 command -v python3.11 >/dev/null || sudo apt-get install -y -q python3.11 python3.11-venv;\
 python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
  if [[ -n ${OA_DATA_DIR:-} ]]; then
    need "OA_DATA_DIR=$OA_DATA_DIR: expected a folder" test -d "$OA_DATA_DIR"
    on_workers 'rm -rf oa-data' # into which the folder would be copied, beside what is there
    run "${tpu[@]}" scp --recurse "$OA_DATA_DIR" "$name:oa-data" "--zone=$zone" --worker=all
  fi
}

train() {
  [[ ${#flags[@]} -gt 0 ]] || fail "expected the arguments of oa_jax train: --config=… --workdir=…"
  step "train on all workers, again while it ends with 75 (saved after a notice)"
  # shellcheck disable=SC2016  # for the worker's shell
  on_workers 'cd oa-jax && export OA_DATA_DIR="$HOME/oa-data"; status=75;'"\
 while [ \$status = 75 ]; do .venv/bin/python -m oa_jax train$(quoted "${flags[@]}")\
 --distributed=auto; status=\$?; done; exit \$status"
}

fetch() {
  step "fetch results into $out"
  run mkdir -p "$out"
  run "${tpu[@]}" scp --recurse "$name:oa-jax/$runs" "$out" "--zone=$zone" --worker=0
}

delete() {
  step "delete '$name'"
  run "${tpu[@]}" delete "$name" "--zone=$zone" --quiet
}

case $action in
  create) create ;;
  install) install ;;
  run) train ;;
  fetch) fetch ;;
  delete) delete ;;
  all)
    create
    install
    train
    fetch
    echo "the slice still runs: launch/tpu_vm.sh delete $name"
    ;;
  *) fail "action '$action': expected create, install, run, fetch, delete or all" ;;
esac
