#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs targets of the Makefile one after the other, stops at the first that fails, and prints how long each took, how many
# tests ran, and the ten slowest tests of all. A script that runs several makes sets CORACLE_STEPS to a file: then all of
# them write to that one, and the script prints it: steps.sh --print FILE. Several makes may run side by side. A line of
# that file is a step (name, seconds, result, the second of its end) or begins with "slow" (seconds, package, test).
#
#   steps.sh TARGET...
set -euo pipefail
cd "$(dirname "$0")/.."

print() {
  echo
  echo 'step              minutes  result'
  awk -F '\t' '$1 != "slow" {
    printf "%-16s  %7.1f  %s\n", $1, $2 / 60, $3
    if (!first || $4 - $2 < first) first = $4 - $2
    if ($4 > last) last = $4
  } END { printf "%-16s  %7.1f\n", "all", (last - first) / 60 }' "$1"
  grep -q '^slow' "$1" || return 0
  printf '\nslowest tests     seconds\n'
  grep '^slow' "$1" | sort -t "$(printf '\t')" -k 2 -rn | head -n 10 | awk -F '\t' '{ printf "%-16s  %7.1f  %s\n", $3, $2, $4 }'
}

if [ "${1:-}" = --print ]; then print "$2"; exit; fi

steps=${CORACLE_STEPS:-}
if [ -z "$steps" ]; then
  steps=$(mktemp)
  trap 'print "$steps"; rm -f "$steps"' EXIT
fi
note=$(mktemp)
for target in "$@"; do
  echo "==== make $target"
  start=$EPOCHSECONDS result=ok code=0
  : > "$note"
  CORACLE_STEPS='' CORACLE_TEST_NOTE=$note make --no-print-directory "$target" || { code=$?; result=FAILED; }
  printf '%s\t%s\t%s\t%s\n' "$target" $((EPOCHSECONDS - start)) "$result$(sed -n '1s/^/, /p' "$note" | tr -d '\n')" "$EPOCHSECONDS" >> "$steps"
  sed -n '2,$s/^/slow\t/p' "$note" >> "$steps"
  [ "$code" = 0 ] || break
done
rm -f "$note"
exit "$code"
