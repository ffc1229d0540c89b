#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes the overlay of go build with which text/template calls no methods by their names.
#
# containerd and CoreDNS link text/template. While one function may call any method by its name, the linker keeps each
# exported method of each type: 28 MB of coracle (docs/adr/0102-helm.md). No template that coracle executes calls one.
# coracle-tools is built without the overlay: charts call methods.
#
#   overlay.sh FOLDER     FOLDER/overlay.json, for a go with GOROOT=FOLDER/goroot
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
GO=${GO:-go} folder=$(realpath -m "$1") call='ptr.MethodByName(fieldName)' replace=
mkdir -p "$folder"
# By this link, since go replaces no files of its module cache, which it may have been fetched into (packaging/go.sh).
ln -sfn "$("$GO" env GOROOT)" "$folder/goroot"
file=$folder/goroot/src/text/template/exec.go
if [ "$(grep -cF "$call" "$file")" = 1 ]; then
  sed "s/$call/(reflect.Value{})/" "$file" >"$folder/exec.txt" # no .go: the folder is no package
  replace="\"$file\": \"$folder/exec.txt\""
else
  say "coracle becomes 28 MB larger: $file has no line with $call, which packaging/overlay.sh replaces"
fi
printf '{"Replace": {%s}}\n' "$replace" >"$folder/overlay.json"
