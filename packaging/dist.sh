#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a release of the programs that `make release` has built into DIST: checks them, writes their bills of materials,
# packs them, sums all files, and signs the sums with each key by minisign. GO, VERSION and KEYS (files of secret keys)
# are set by the Makefile.
#
#   dist.sh DIST ARCH...
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
dist=$1
shift

GO=$GO packaging/check-release.sh "$dist" "$@"
for arch in "$@"; do
  work=build/$arch-release
  "$GO" run -buildvcs=false ./packaging/sbom -program "$dist/coracle-linux-$arch" -version "$VERSION" -arch "$arch" \
    -set "internal/embedded/files/$arch" -debian "$work/nft/packages,$work/c-libraries" -tools "$work/c-tools" \
    -npm console/web/package-lock.json -out "$dist/coracle-linux-$arch.cdx.json"
done
cp install.sh LICENSE NOTICE "$dist/"
cd "$dist"
printf 'coracle-linux-%s\n' "$@" | xargs -n 1 -P 2 xz -9e --keep --threads=1
sha256sum coracle-linux-* install.sh > sha256sums.txt
for arch in "$@"; do rm "coracle-linux-$arch"; done
cat sha256sums.txt

for key in ${KEYS:-}; do
  command -v minisign >/dev/null || die "minisign is missing, which signs with $key: Debian's package of that name has it. Everything else of the release is in $dist"
  # The comment is signed too. Without one of ours it would be the time.
  minisign -S -s "$key" -m sha256sums.txt -x signature.new -t "coracle $VERSION" -c 'signature of coracle'
  id=$(sed -n 2p signature.new | base64 -d | od -An -tx8 -j2 -N8 | tr -d ' ' | tr a-f A-F) # as minisign prints it
  mv signature.new "sha256sums.txt.$id.minisig"
  say "signed by $id"
done
[ -n "${KEYS:-}" ] || say "not signed: KEYS names no file of a secret key"
