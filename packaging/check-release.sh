#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks what `make release` built: each binary and each program that it carries is for its processor, and linked
# statically, apart from nft with its libraries, and has no tag of a build for tests.
#
#   check-release.sh DIST ARCH...
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
dist=$1
shift

# elf FILE prints class, processor and whether an interpreter is asked for, in readelf's words.
machine() { readelf -h "$1" | sed -n 's/^ *Machine: *//p'; }
interpreter() { readelf -l "$1" 2>/dev/null | sed -n 's/.*program interpreter: \(.*\)\]/\1/p'; }

check() { # check FILE ARCH static|any
  local want
  case $2 in amd64) want='Advanced Micro Devices X86-64' ;; arm64) want=AArch64 ;; *) die "unknown processor $2" ;; esac
  [ "$(machine "$1")" = "$want" ] || die "$1 is for $(machine "$1"), not for $2"
  [ "$3" = any ] || [ -z "$(interpreter "$1")" ] || die "$1 is not linked statically: it asks for $(interpreter "$1")"
}

for arch in "$@"; do
  binary=$dist/coracle-linux-$arch
  [ -x "$binary" ] || die "$binary was not built"
  check "$binary" "$arch" static
  [ "$(stat -c %s "$binary")" -lt 255000000 ] || die "$binary has methods that nothing calls: see packaging/overlay.sh"
  case $("${GO:-go}" version -m "$binary" | sed -n 's/^[[:space:]]*build[[:space:]]*-tags=//p') in
    *twolevels*) die "$binary has the tag twolevels: it is a build for tests, whose level 1 is another one" ;;
    *no_btrfs*) ;;
    *) die "$binary does not say with which tags it was built" ;;
  esac
  stage=build/$arch-release/stage
  for program in runc coracle-helper coracle-ingress nft; do check "$stage/$program" "$arch" static; done
  for file in "$stage"/nftables/nft "$stage"/nftables/ld.so "$stage"/nftables/protocols.so "$stage"/nftables/*.so.*; do check "$file" "$arch" any; done
  check "build/$arch-release/pause" "$arch" static
  # What was packed is what lies there: the index names the hash of each.
  while read -r kind _ _ sum path _; do
    [ "$kind" = file ] || continue
    [ "$(sha256sum "$stage/$path" | cut -d ' ' -f 1)" = "$sum" ] || die "$arch: the embedded $path is not the one that was built"
  done < "internal/embedded/files/$arch/INDEX"
  say "$binary: $(($(stat -c %s "$binary") / 1000000)) MB, with $(wc -l < "internal/embedded/files/$arch/INDEX") embedded files"
done
