#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes the overlay of go build with which text/template calls no methods, or those of a list, by their names.
#
# containerd and CoreDNS link text/template, and so do kubectl and Helm. While one function may call any method by its
# name, the linker keeps each exported method of each type: 28 MB of coracle, 20 MB of coracle-tools
# (docs/adr/0102-helm.md). No template that coracle executes calls one. Charts call methods, and so does the help of
# kubectl and ctr: those of template-methods.txt, as a test of coracle-tools has it.
#
#   overlay.sh FOLDER [NAMES]   FOLDER/overlay.json, for a go with GOROOT=FOLDER/goroot; NAMES is a file
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
GO=${GO:-go} folder=$(realpath -m "$1") names=${2:-/dev/null} call='ptr.MethodByName(fieldName)' replace=
mkdir -p "$folder"
# By this link, since go replaces no files of its module cache, which it may have been fetched into (packaging/go.sh).
ln -sfn "$("$GO" env GOROOT)" "$folder/goroot"
file=$folder/goroot/src/text/template/exec.go
if [ "$(grep -cF "$call" "$file")" = 1 ]; then
  {
    sed "s/$call/methodByName(ptr, fieldName)/" "$file"
    printf '\nfunc methodByName(v reflect.Value, name string) reflect.Value {\n\tswitch name {\n'
    sed 's/.*/\tcase "&":\n\t\treturn v.MethodByName("&")/' "$names" # a constant: the linker keeps methods of this name
    printf '\t}\n\treturn reflect.Value{}\n}\n'
  } >"$folder/exec.txt" # no .go: the folder is no package
  replace="\"$file\": \"$folder/exec.txt\""
else
  say "coracle becomes 28 MB larger, coracle-tools 20: $file has no line with $call, which packaging/overlay.sh replaces"
fi
printf '{"Replace": {%s}}\n' "$replace" >"$folder/overlay.json"
