#!/usr/bin/env bash
# Baseline and GCA_early on an embedded synthetic pair, their table, and the page of the analysis,
# in .venv, which it makes when missing. A second call finds all of it done.
#   launch/quickstart.sh --help    arguments go to `python -m oa_jax quickstart`; paths count from
#                                  the repository root
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

runs=runs/quickstart # as the command's own default
previous=
for word in "$@"; do
  case $word in
    -h | -help* | --help* | '-?') # says what may be given, and does nothing
      prepare_venv '.[analysis]'
      exec "$VENV_PYTHON" -m oa_jax quickstart "$@"
      ;;
    -workdir=* | --workdir=*) runs=${word#*=} ;;
    *) [[ $previous != -workdir && $previous != --workdir ]] || runs=$word ;;
  esac
  previous=$word
done

prepare_venv '.[analysis]'
"$VENV_PYTHON" -m oa_jax quickstart "$@"

page=$runs/report/report.html
if [[ ! -e $page || $page -ot $runs/baseline/summary.json || $page -ot $runs/gca_early/summary.json ]]; then
  "$VENV_PYTHON" -m analysis report --fast "--runs=$runs/baseline,$runs/gca_early" "--out=$runs/report"
fi
cat <<EOF

The page: $page
To try next:
  $VENV_PYTHON -m oa_jax train --config=configs/abxi.py:gca=stack --workdir=$runs/gca_stack
      a second place of GCA, on the same synthetic pair
  $VENV_PYTHON -m analysis report --runs=$runs --out=$runs/report
      the page of all three, with what lies in X' and what is lost without it (minutes)
  $VENV_PYTHON -m oa_jax train --config=configs/abxi.py:pair=beauty_elec,gca=early,size=small --workdir=runs/early
      real data, in the folder OA_DATA_DIR, where two commands put them:
      $VENV_PYTHON -m pip install -e '.[data]'
      $VENV_PYTHON -m oa_jax data prepare beauty_elec --download
EOF
