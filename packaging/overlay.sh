#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes the overlay of go build with which text/template calls by their names only the methods of a list.
#
# While one function may call any method by its name, the linker keeps each exported method of each type: 28 MB of
# coracle (docs/adr/0102-helm.md). Helm charts call methods in their templates, and so does the help of kubectl and ctr:
# those of template-methods.txt, as a test of cmd/coracle/tools/helmchild has it.
#
#   overlay.sh FOLDER   FOLDER/overlay.json, for a go with GOROOT=FOLDER/goroot
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
GO=${GO:-go} folder=$(realpath -m "$1") names=packaging/template-methods.txt call='ptr.MethodByName(fieldName)' replace=
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
  say "coracle becomes 28 MB larger: $file has no line with $call, which packaging/overlay.sh replaces"
fi
printf '{"Replace": {%s}}\n' "$replace" >"$folder/overlay.json"
