#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the pages of the web console from console/web into console/files, unless they are there already. The packages
# that they are made of come from npm, at the versions and checksums of package-lock.json; no script of theirs runs.
# Where npm is missing the build goes on without the pages: `coracle console` then says how to get them. Run through
# `make embedded`, which sets GO.
#
#   console.sh WORK          make them
#   console.sh --check WORK  check the types of their sources, their format, and what they import of each other
#   console.sh --format WORK format their sources
#   console.sh --axe WORK    WORK/axe.min.js, which looks for what keeps people from using a page: for tests alone
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
GO=${GO:-go}

# copy FOLDER OPTION...: the sources in a folder of their own, with the packages that they need.
copy() {
  local folder=$1 log=$1.log
  shift
  rm -rf "$folder"
  mkdir -p "$folder"
  tar -C console/web --exclude=./node_modules -cf - . | tar -C "$folder" -xf -
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error "$@") >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}

if [ "$1" = --check ]; then
  command -v npm >/dev/null || die "npm is missing: packaging/deps.sh console installs it"
  copy "$2/console-check" || die "npm could not fetch the console's packages; its messages are above"
  (cd "$2/console-check" && node_modules/.bin/tsc --noEmit)
  (cd "$2/console-check" && node_modules/.bin/prettier --log-level warn --check src test) ||
    die "packaging/console.sh --format build formats the pages"
  rm -rf "$2/console-check"
  CGO_ENABLED=0 "$GO" run -buildvcs=false ./console/bundle -layers
  exit 0
fi
if [ "$1" = --format ]; then
  command -v npm >/dev/null || die "npm is missing: packaging/deps.sh console installs it"
  copy "$2/console-format" || die "npm could not fetch the console's packages; its messages are above"
  "$2/console-format/node_modules/.bin/prettier" --log-level warn --config console/web/package.json --write console/web/src console/web/test
  rm -rf "$2/console-format"
  exit 0
fi
if [ "$1" = --axe ]; then
  command -v npm >/dev/null || die "npm is missing: packaging/deps.sh console installs it"
  copy "$2/console-axe" || die "npm could not fetch the console's packages; its messages are above"
  mv "$2/console-axe/node_modules/axe-core/axe.min.js" "$2/axe.min.js"
  rm -rf "$2/console-axe"
  exit 0
fi
work=$1

sources=$(git ls-files -co --exclude-standard console/web console/bundle 2>/dev/null || find console/web console/bundle -type f -not -path '*/node_modules/*')
sum=$({ printf '%s\n' "$sources" | LC_ALL=C sort | xargs sha256sum; grep -F evanw/esbuild go.mod; } | sha256sum | cut -d ' ' -f 1)
if [ "$(cat console/files/sum 2>/dev/null)" = "$sum" ] && [ -f console/files/index.html.gz ]; then exit 0; fi

if ! command -v npm >/dev/null; then
  if [ -n "${TRIMPATH:-}" ]; then die "npm is missing, and a release has the pages of coracle console: packaging/deps.sh console installs it"; fi
  say "npm is missing: building without the pages of coracle console (packaging/deps.sh console installs it, as root)"
  exit 0
fi
say "making the pages of the web console"
if ! copy "$work/console-web" --omit=dev; then
  if [ -n "${CORACLE_TEST_REQUIRE:-}${TRIMPATH:-}" ]; then die "npm could not fetch the console's packages; its messages are above"; fi
  say "npm could not fetch the console's packages; its messages are above. Building without the pages of coracle console"
  exit 0
fi
CGO_ENABLED=0 "$GO" run -buildvcs=false ./console/bundle -src "$work/console-web" -out console/files
printf '%s\n' "$sum" >console/files/sum
rm -rf console/web/node_modules
mv "$work/console-web/node_modules" console/web/node_modules # the tests of the pages use them
rm -rf "$work/console-web"
