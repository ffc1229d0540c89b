#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks the subjects of commits: "folder: Text", at most 72 columns, no full stop at the end. It checks commits that the branch's upstream does
# not have; without an upstream the last 20. Merges, and commits that are older than this check, are left out.
set -euo pipefail
export LC_ALL=C.UTF-8 # ${#subject} counts characters
cd "$(dirname "$0")/.."
skip() { echo "subjects of commits are not checked: $1"; exit 0; }
[ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$(pwd -P)" ] || skip 'this is no git repository'
[ "$(git rev-parse --is-shallow-repository)" = false ] || skip 'this is a shallow clone'
base=745670c546306dae3abcbb6a5ee842cab1c4dc07 # the newest commit before this check
git cat-file -e "$base^{commit}" 2>/dev/null || skip "$base is not in this repository"
range=(-n 20)
! git rev-parse -q --verify '@{upstream}' >/dev/null 2>&1 || range=('^@{upstream}')
subjects=$(git log --no-merges --format='%h %s' "${range[@]}" HEAD "^$base")
bad=0
while read -r hash subject; do
  [ -n "$hash" ] || continue
  [[ ${#subject} -le 72 && $subject =~ ^[^\ :][^:]*:\ [[:upper:][:digit:]] && $subject != *. ]] && continue
  echo "$hash: \"$subject\" has ${#subject} columns: want \"folder: Text\" of at most 72, without a full stop at the end" >&2
  bad=1
done <<<"$subjects"
exit "$bad"
