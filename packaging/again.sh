#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a program so many times, each time as a process of its own, and fails when one of them did. It is for the -exec of
# go test: -count runs a package's tests again in one process, and what is the process' own (its moments of internal/timers,
# seeds, what an earlier test has left) is the same each time then.
#
#   again.sh TIMES PROGRAM [ARGUMENT...]
set -eu
times=$1
shift
failed=0
i=0
while [ "$i" -lt "$times" ]; do
  "$@" || failed=$((failed + 1))
  sleep 0.17 # else those of a quick test begin at almost the same moment of a second, which is what their moments depend on
  i=$((i + 1))
done
[ "$failed" -eq 0 ] || { echo "$failed of $times processes failed" >&2; exit 1; }
