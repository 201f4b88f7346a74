#!/usr/bin/env bash
# Official-size ABXI on one accelerator: baseline, GCA_early and GCA_stack, five seeds each, to
# early stopping; then seconds per epoch for one and five seeds, and the tables.
#   OA_DATA_DIR=DIR launch/gpu.sh [PAIR …]      pairs: beauty_elec food_kitchen (default: both)
# OUT (default runs/gpu) receives the workdirs and table.md; a second call goes on where one ended.
# PYTHON (default python3) must have jax with its accelerator, flax, optax, orbax-checkpoint,
# ml_collections, absl-py and rich.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
pairs=("$@")
[[ ${#pairs[@]} -gt 0 ]] || pairs=(beauty_elec food_kitchen)
: "${OA_DATA_DIR:?set it to the folder that holds abe/ and afk/}"

"$python" - <<'PY'
import jax, flax, optax, orbax.checkpoint, ml_collections, absl, rich
if jax.default_backend() == "cpu":
    raise SystemExit("error: jax sees no accelerator, only a CPU")
print("on", jax.devices()[0].device_kind, "with jax", jax.__version__)
PY

train() { # workdir, arguments of the config, overrides …
  local workdir=$1 arguments=$2
  shift 2
  "$python" -m oa_jax.train --config="configs/abxi.py:$arguments" --workdir="$workdir" "$@"
}

for pair in "${pairs[@]}"; do
  for gca in none early stack; do
    train "$out/${pair}_$gca" "pair=$pair,gca=$gca"
  done
  # The same twelve epochs (nobody stops in them) with one seed and with five.
  for seeds in 1 5; do
    train "$out/${pair}_time_$seeds" "pair=$pair" --config.seeds=$seeds \
      --config.train.max_epochs=12 --config.train.checkpoint_every=1000
  done
done

{
  for pair in "${pairs[@]}"; do
    echo "## $pair"
    "$python" -m oa_jax.report --markdown "$out/${pair}"_{none,early,stack}
    "$python" - "$out/${pair}_time_1" "$out/${pair}_time_5" <<'PY'
import json, sys
one, five = (json.load(open(f"{path}/summary.json")) for path in sys.argv[1:])
each = [s["seconds"]["train"] / s["per_seed"][0]["epochs"] for s in (one, five)]
print(f"\nseconds per epoch, validation included: one seed {each[0]:.3f}, five seeds {each[1]:.3f} "
      f"({each[1] / each[0]:.2f} of one)\n")
PY
  done
} | tee "$out/table.md"
