#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the benchmarks: coracle, then upstream's separate processes. Run through `make bench`, which builds both.
#
#   CORACLE_BIN        the binary to measure
#   CORACLE_UPSTREAM   the folder with upstream's programs, as `make upstream` leaves it
#   CORACLE_BENCH_QUICK=1   a tenth of each window, to try a change
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
: "${CORACLE_BIN:?run make bench, which builds coracle}" "${CORACLE_UPSTREAM:?run make bench, which builds the programs of upstream}"
export CORACLE_BIN CORACLE_UPSTREAM CGO_ENABLED=0
echo "machine: $(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GB", $2 / 1e6}' /proc/meminfo), $(uname -rm)"
exec "$(cd "$top" && packaging/go.sh)" test -buildvcs=false -tags 'bench no_btrfs no_zfs no_devmapper grpcnotrace' \
  -count=1 -v -timeout 240m -run "${BENCH:-.}" "$top/test/bench"
