#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the benchmarks: coracle, then upstream's separate processes where a script that builds and runs them is at hand.
#
#   CORACLE_BIN        the binary to measure
#   CORACLE_PEER       that script (default: shared/peer/peer.sh beside the checkout; without it only coracle is measured)
#   CORACLE_PEER_DIR   where it builds, kept between runs (default: below the user's cache folder)
#   CORACLE_BENCH_QUICK=1   a tenth of each window, to try a change
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
: "${CORACLE_PEER:=$top/../shared/peer/peer.sh}"
if [ ! -f "$CORACLE_PEER" ]; then
  echo "no script for upstream at \$CORACLE_PEER: measuring coracle alone" >&2
  CORACLE_PEER=
fi
: "${CORACLE_PEER_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/coracle-peer}"
export CORACLE_PEER CORACLE_PEER_DIR CGO_ENABLED=0
echo "machine: $(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GB", $2 / 1e6}' /proc/meminfo), $(uname -rm)"
exec "$(cd "$top" && packaging/go.sh)" test -buildvcs=false -tags 'bench no_btrfs no_zfs no_devmapper grpcnotrace' \
  -count=1 -v -timeout 240m -run "${BENCH:-.}" "$top/test/bench"
