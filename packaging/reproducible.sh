#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the release of what is committed twice and compares the bytes: in two folders with an empty build cache each,
# or, with ROOT=1, in a folder and in the root of a newly bootstrapped Debian with nothing else (root, test/fresh). With
# SHARED=1 both folders use one build cache, which shows less: what is compiled once is not compared.
#
#   reproducible.sh FOLDER ARCH...
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
folder=$(realpath -m "$1") archs=${*:2}
rm -rf "$folder"
commit=$(git rev-parse HEAD) # of both, whatever is committed meanwhile

# build NAME: a release in a clone named NAME.
build() {
  mkdir -p "$folder/${1%/*}"
  git clone --quiet --no-checkout . "$folder/$1"
  git -C "$folder/$1" checkout --quiet --detach "$commit"
  say "building in $folder/$1"
  # This make's variables are not for the clone's.
  env -u MAKEFLAGS -u MFLAGS -u GOCACHE GOCACHE="$folder/cache${SHARED:+-shared}" make --no-print-directory -C "$folder/$1" release ARCHS="$archs" >"$folder/log" 2>&1 ||
    { cat "$folder/log" >&2; die "the build in $folder/$1 failed; its messages are above"; }
  [ -n "${SHARED:-}" ] || rm -rf "$folder/cache"
}

build first/coracle
if [ -n "${ROOT:-}" ]; then
  "${GO:-go}" run -tags "${TAGS:-}" ./test/fresh -script "git checkout --quiet --detach $commit
apt-get -qq install -y --no-install-recommends make >/dev/null
packaging/deps.sh build cross console
make release ARCHS='$archs'
diff - dist/sha256sums.txt <<'SUMS'
$(cat "$folder/first/coracle/dist/sha256sums.txt")
SUMS"
  say "the same bytes in $folder/first and in an empty root"
  exit 0
fi
build second/folder-with-a-longer-name
one=$folder/first/coracle two=$folder/second/folder-with-a-longer-name
differ=
for arch in $archs; do
  for part in $(cd "$one/build/$arch-release/stage" && find . -type f | sort); do
    cmp -s "$one/build/$arch-release/stage/$part" "$two/build/$arch-release/stage/$part" || differ+=" $arch:${part#./}"
  done
done
diff "$one/dist/sha256sums.txt" "$two/dist/sha256sums.txt" >&2 || die "the two releases differ. Embedded files that differ:${differ:- none}"
say "the same bytes in both folders:"
cat "$one/dist/sha256sums.txt"
