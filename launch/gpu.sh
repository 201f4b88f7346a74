#!/usr/bin/env bash
# Official sizes on one accelerator, part by part, and tables of all.
#   OA_DATA_DIR=DIR launch/gpu.sh [--dry-run] [PART …]
#   time       python -m oa_jax bench of each backbone with 1, 5 and 16 seeds, JSON in OUT
#   bench      the same of five seeds of ABXI by form of the softmax and type of activations
#   abxi       both pairs: baseline, GCA_early, GCA_stack, five seeds each, to early stopping
#   llm4cdsr   Food-Kitchen of LLMCDSR: the same three
#   cdsrnp     the same three on the same set
#   sweep      the study STUDY (default configs/studies/table1.py) in OUT/NAME of its file, by WORKERS
#              processes (default 1): one trains while another compiles
#   table      of the benchmarks and of the runs that are finished in OUT, also written to OUT/table.md
# Default: all of them but `sweep`, on the first GPU, or CUDA_VISIBLE_DEVICES. OUT (default runs/gpu) receives the
# workdirs; a second call goes on where the first ended, and leaves out finished benchmarks. LIMIT=SECONDS cuts every
# command off there: a training goes on when called again, a benchmark begins anew.
# PYTHON (default python3) must have jax with its accelerator, flax, optax, orbax-checkpoint,
# ml_collections, absl-py and rich. OA_DATA_DIR holds abe/ and afk/, or abxi/abe/ and abxi/afk/; for
# the others also a prepared llmcdsr_food_kitchen, for LLM4CDSR with its tables
# (oa_jax/backbones/README.md).
# What has no data is left out, which a line says.
# OFFICIAL_ABXI, OFFICIAL_LLM4CDSR: checkouts of the official codes, which the benchmark then times
# beside ours on the same batches, by OFFICIAL_PYTHON (default: PYTHON), which must have PyTorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=_steps.sh
source launch/_steps.sh
take_dry_run "$@"

python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
all=(time bench abxi llm4cdsr cdsrnp table)
parts=("${ARGUMENTS[@]}")
[[ ${#parts[@]} -gt 0 ]] || parts=("${all[@]}")
for part in "${parts[@]}"; do
  [[ " ${all[*]} sweep " == *" $part "* ]] || fail "part '$part': expected some of ${all[*]} sweep"
done
need "OA_DATA_DIR=${OA_DATA_DIR:-}: expected the folder that holds the data" test -d "${OA_DATA_DIR:-}"
need "$python: expected one with jax, flax, optax, orbax-checkpoint, ml_collections, absl-py and rich" \
  "$python" -c 'import jax, flax, optax, orbax.checkpoint, ml_collections, absl, rich'
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
need "an accelerator: jax sees a CPU only" \
  "$python" -c 'import jax; assert jax.default_backend() != "cpu"'

failed=()
try() { # a part that fails is named at the end; the others go on
  local limit=() command status=0 child told=false
  [[ -z ${LIMIT:-} ]] || limit=(timeout --signal=TERM --kill-after=30 "$LIMIT")
  command=("${limit[@]}" "$python" -m "$@")
  echo "+$(quoted "${command[@]}")"
  if $DRY_RUN; then return; fi
  # Beside this script, which a signal would otherwise end alone, or not before the command.
  "${command[@]}" &
  child=$!
  trap 'told=true; kill -TERM "$child" 2>/dev/null || true' TERM INT
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # told to stop, it saves first
    status=0
    wait "$child" || status=$?
  done
  trap - TERM INT
  [[ $status == 0 ]] || failed+=("$*")
  # Told to stop, and not by LIMIT: so are the parts that follow.
  if $told || [[ $status == 130 || ($status == 75 && -z ${LIMIT:-}) ]]; then exit "$status"; fi
}

# Backbone -> the configuration that is timed, all but what follows.
declare -A timed=([abxi]=configs/abxi.py:pair=beauty_elec)
sets=${OA_DATA_DIR:-}
food=llmcdsr_food_kitchen
for needed in llm4cdsr:oa_tables cdsrnp:oa_pairs; do
  backbone=${needed%:*}
  if [[ -d $sets/oa_pairs/$food && -d $sets/${needed#*:}/$food && -f configs/$backbone.py ]]; then
    timed[$backbone]=configs/$backbone.py:pair=$food
  else
    echo "left out: $backbone: expected configs/$backbone.py, and $food in oa_pairs/ and" \
      "${needed#*:}/ below OA_DATA_DIR"
  fi
done

train_three() { # name of the runs, configuration
  local gca
  for gca in none early stack; do
    try oa_jax train "--config=$2,gca=$gca" "--workdir=$out/$1_$gca"
  done
}

abxi() {
  step "ABXI at official size, five seeds, to early stopping"
  local pair
  for pair in beauty_elec food_kitchen; do
    train_three "abxi_$pair" "configs/abxi.py:pair=$pair"
  done
}

on_food_kitchen() { # backbone
  [[ -n ${timed[$1]:-} ]] || return 0
  step "$1 at official size, five seeds, to early stopping"
  train_three "$1_food_kitchen" "${timed[$1]}"
}

measured() { # name of the JSON, arguments of bench
  if [[ -e $out/$1.json ]]; then
    echo "there already: $out/$1.json"
  else
    try oa_jax bench "${@:2}" "--out=$out/$1.json"
  fi
}

time_seeds() {
  step "benchmark"
  run mkdir -p "$out"
  local backbone config
  local -A official=([abxi]=${OFFICIAL_ABXI:-} [llm4cdsr]=${OFFICIAL_LLM4CDSR:-})
  for backbone in "${!timed[@]}"; do
    config=("--config=${timed[$backbone]}" "--seeds=1,5,16")
    if [[ -n ${official[$backbone]:-} ]]; then # which is left memory for
      XLA_PYTHON_CLIENT_PREALLOCATE=false measured "bench_${backbone}_official" "${config[@]}" \
        "--official=${official[$backbone]}" "--official_python=${OFFICIAL_PYTHON:-$python}"
    else
      measured "bench_$backbone" "${config[@]}"
    fi
  done
}

bench() {
  step "benchmark of forms"
  run mkdir -p "$out"
  measured bench_softmax "--config=${timed[abxi]}" --vary=train.softmax=gather,products --seeds=5
  measured bench_activations "--config=${timed[abxi]}" --seeds=5 \
    --vary=train.activation_dtype=float32,bfloat16
}

sweep() {
  local study=${STUDY:-configs/studies/table1.py} name
  name=$(basename "${study%%:*}" .py)
  step "sweep $study"
  try oa_jax sweep "--study=$study" "--out=$out/$name" "--workers=${WORKERS:-1}"
}

for part in "${parts[@]}"; do
  case $part in
    llm4cdsr | cdsrnp) on_food_kitchen "$part" ;;
    time) time_seeds ;;
    table)
      step "table"
      run mkdir -p "$out"
      run "$python" launch/gpu_table.py "$out" || failed+=(table)
      ;;
    *) "$part" ;;
  esac
done
if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'not finished: %s\n' "${failed[@]}" >&2
  exit 1
fi
