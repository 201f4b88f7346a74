# shellcheck shell=bash
# Sourced by the scripts beside it: what a script does is printed before it is done, and with
# --dry-run only printed. Defines
#   take_dry_run "$@"    sets DRY_RUN and ARGUMENTS, the other arguments
#   step WORDS           a heading
#   run COMMAND …        prints the command and, unless dry, runs it
#   need WORDS TEST …    fails with WORDS unless the command TEST succeeds; only says so when dry

DRY_RUN=false
ARGUMENTS=()

fail() {
  echo "error: $*" >&2
  exit 2
}

take_dry_run() {
  local word
  for word in "$@"; do
    if [[ $word == --dry-run ]]; then DRY_RUN=true; else ARGUMENTS+=("$word"); fi
  done
}

step() { echo "== $*"; }

# The words with a space before each, quoted where a shell needs it.
quoted() {
  local word
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then printf ' %s' "$word"; else printf ' %s' "${word@Q}"; fi
  done
}

run() {
  echo "+$(quoted "$@")"
  $DRY_RUN || "$@"
}

need() {
  local words=$1
  shift
  if ! "$@" >/dev/null 2>&1; then
    $DRY_RUN || fail "$words"
    echo "missing: $words"
  fi
}
