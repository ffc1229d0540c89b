#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the pages of the web console from console/web into console/files, unless they are there already. The packages
# that they are made of come from npm, at the versions and checksums of package-lock.json; no script of theirs runs.
# Where npm is missing the build goes on without the pages: `coracle console` then says how to get them. Run through
# `make carried`, which sets GO.
#
#   console.sh WORK
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
work=$1
GO=${GO:-go}

sources=$(git ls-files -co --exclude-standard console/web console/bundle 2>/dev/null || find console/web console/bundle -type f -not -path '*/node_modules/*')
sum=$(printf '%s\n' "$sources" | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d ' ' -f 1)
if [ "$(cat console/files/sum 2>/dev/null)" = "$sum" ] && [ -f console/files/index.html.gz ]; then exit 0; fi

if ! command -v npm >/dev/null; then
  say "npm is missing: building without the pages of coracle console (packaging/deps.sh console installs it, as root)"
  exit 0
fi
say "making the pages of the web console"
rm -rf "$work/console-web"
mkdir -p "$work/console-web"
cp -r console/web/. "$work/console-web/"
rm -rf "$work/console-web/node_modules"
log=$work/console-npm.log
if ! (cd "$work/console-web" && npm ci --ignore-scripts --omit=dev --no-audit --no-fund --loglevel=error) >"$log" 2>&1; then
  cat "$log" >&2
  if [ -n "${CORACLE_TEST_REQUIRE:-}" ]; then die "npm could not fetch the console's packages; its messages are above"; fi
  say "npm could not fetch the console's packages; its messages are above. Building without the pages of coracle console"
  exit 0
fi
CGO_ENABLED=0 "$GO" run -buildvcs=false ./console/bundle -src "$work/console-web" -out console/files
printf '%s\n' "$sum" >console/files/sum
rm -rf "$work/console-web/node_modules"
