#!/usr/bin/env bash
# One run in N processes of this machine, which talk over loopback.
#   launch/processes.sh [--dry-run] N --config=FILE.py:ARGS --workdir=DIR …
# All other arguments go to `python -m oa_jax train`. The first process writes to the terminal, the
# others to WORKDIR.process-I.log. SIGTERM reaches all. When one fails, the others are ended and its
# status is this script's; 75 means interrupted after saving. The same command goes on.
#   PYTHON (default .venv/bin/python if it is there, else python3)
#   PORT   (default: a free one)
#   DEVICES (default 1) virtual devices of each process, where JAX runs on the CPU; with N NVIDIA
#           GPUs or more, each process has one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=_steps.sh
source launch/_steps.sh
take_dry_run "$@"

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
count=${ARGUMENTS[0]:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "processes '$count': expected a whole number of at least 1"
flags=("${ARGUMENTS[@]:1}")
workdir=
for flag in "${flags[@]}"; do
  [[ $flag == --workdir=?* ]] && workdir=${flag#--workdir=}
done
workdir=${workdir%/}
[[ -n $workdir ]] || fail "--workdir=DIR: missing: expected a folder for the run"
need "$python: cannot import oa_jax: expected it installed (pip install -e .), or PYTHON" \
  "$python" -c 'import oa_jax.train'
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
[[ -z ${PORT:-} || $PORT =~ ^[0-9]+$ ]] || fail "PORT=$PORT: expected a number"
port=${PORT:-$("$python" -c "$free_port")}

# Each process gets an NVIDIA GPU of its own, of those that CUDA_VISIBLE_DEVICES names, if there are enough.
gpus=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)
IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((gpus - 1)))}"
step "$count processes of ${DEVICES:-1} device(s) each, process 0 listens on 127.0.0.1:$port"
$DRY_RUN || mkdir -p "$(dirname "$workdir")"
children=()
for ((i = 0; i < count; i++)); do
  own=("JAX_NUM_CPU_DEVICES=${DEVICES:-1}")
  ((gpus == 0 || ${#visible[@]} < count)) || own+=("CUDA_VISIBLE_DEVICES=${visible[i]}")
  command=(env "${own[@]}" "$python" -m oa_jax train "${flags[@]}"
    "--distributed=127.0.0.1:$port,$count,$i")
  log=$workdir.process-$i.log
  echo "+$(quoted "${command[@]}")$([[ $i == 0 ]] || echo " >$(quoted "$log") 2>&1") &"
  if $DRY_RUN; then continue; fi
  if [[ $i == 0 ]]; then "${command[@]}" & else "${command[@]}" >"$log" 2>&1 & fi
  children+=($!)
done
if $DRY_RUN; then exit 0; fi

status=0
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
while ((${#children[@]} > 0)); do
  sleep 0.2 || true # which Ctrl-C ends, too
  for i in "${!children[@]}"; do
    kill -0 "${children[i]}" 2>/dev/null && continue
    code=0
    wait "${children[i]}" || code=$?
    unset "children[i]"
    ((code != 0 && status == 0)) || continue
    status=$code
    echo "process $i ended with status $code" >&2
    # 75: the others are saving too. Else they would wait for it for ever; the newest checkpoint
    # holds. A second, for what they have to say about the same mistake.
    if ((code != 75 && ${#children[@]} > 0)); then
      sleep 1
      kill -KILL "${children[@]}" 2>/dev/null || true
    fi
  done
done
exit "$status"
