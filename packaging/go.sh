#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints the path of a Go command that is new enough for go.mod. An older one, such as a distribution's, fetches the
# right toolchain the way Go itself does: as the module golang.org/toolchain, checked against Go's checksum database.
# (Go does that by itself from 1.21 on; Debian 12 has 1.19, so here it is done by hand, and the same for all.)
#
#   go.sh              find, fetching the toolchain when only an older Go is there
#   go.sh --exact      the very version of go.mod, which a release is built with, fetched unless it is there
set -eu
cd "$(dirname "$0")/.."

want=$(sed -n 's/^go \([0-9.]*\)$/\1/p' go.mod)

# newer_or_same HAVE WANT compares dotted versions.
newer_or_same() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# version GO prints that command's version, without switching toolchains.
version() { (cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null | sed -n 's/^go\([0-9][0-9.]*\).*/\1/p'); }

older=
exact=${1:-}
for go in go /usr/local/go/bin/go /usr/lib/go/bin/go; do
  path=$(command -v "$go") || continue
  have=$(version "$path")
  [ -n "$have" ] || continue
  if [ "$have" = "$want" ] || { [ -z "$exact" ] && newer_or_same "$have" "$want"; }; then echo "$path"; exit 0; fi
  if [ -z "$older" ] && newer_or_same "$have" 1.17; then older=$path; fi
done
[ -n "$older" ] || {
  echo "error: there is no Go here. coracle needs Go $want; packaging/deps.sh build installs the distribution's, from which the right one is fetched" >&2
  exit 1
}

goarch=$(cd / && GOTOOLCHAIN=local "$older" env GOHOSTARCH)
module=golang.org/toolchain@v0.0.1-go$want.linux-$goarch
dir=$(cd / && GOTOOLCHAIN=local GOFLAGS=-mod=mod "$older" env GOMODCACHE)/$module
if [ ! -x "$dir/bin/go" ] || [ ! -f "$dir/src/go.mod" ]; then
  echo "Go $(version "$older") is not $want: fetching $module" >&2
  # Outside this module, whose go.mod an old Go cannot read.
  (cd / && GOTOOLCHAIN=local GOFLAGS=-mod=mod "$older" mod download "$module") >&2
  # What Go does after fetching a toolchain: module files carry no execute bits, and nested modules hide their go.mod.
  chmod -R u+w "$dir"
  find "$dir" -name _go.mod | while read -r f; do cp "$f" "${f%/_go.mod}/go.mod"; done
  chmod -R a+x "$dir/pkg/tool" "$dir/bin"
fi
echo "$dir/bin/go"
