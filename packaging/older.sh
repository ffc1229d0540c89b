#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts another version of coracle into a file, for tests of two versions. A program that was built is kept below FOLDER.
#
#   older.sh PROGRAM|REVISION FILE FOLDER   PROGRAM is a file, REVISION a tag or commit of this repository
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
wanted=$1 file=$2 folder=$3

if [ -f "$wanted" ]; then
  cp "$wanted" "$file"
  exit 0
fi
commit=$(git rev-parse --verify --quiet "$wanted^{commit}") || die "OLDER=$wanted is neither a file nor a tag or commit of this repository.
A clone without history lacks older ones: git fetch --tags --unshallow gets them"
tree=$folder/$commit
if [ ! -f "$tree/built" ]; then
  git worktree prune # of folders that were removed
  [ -e "$tree/.git" ] || git worktree add --quiet --detach "$tree" "$commit"
  # Debian's packages are fetched once: a build compares them with the lock of its own tree.
  for fetched in build/*/nft; do
    [ ! -d "$fetched" ] || { mkdir -p "$tree/$(dirname "$fetched")" && cp -a "$fetched" "$tree/$(dirname "$fetched")/"; }
  done
  say "building $wanted ($commit) in $tree"
  # Its Makefile is another one: none of this run's variables are its own.
  env -u MAKEFLAGS -u MFLAGS -u VERSION -u TRIMPATH -u TEST_TAG make --no-print-directory -C "$tree" build OUT=bin/coracle
  touch "$tree/built"
fi
cp "$tree/bin/coracle" "$file"
