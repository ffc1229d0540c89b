#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian or Ubuntu packages that are missing, and says nothing when none is.
#
#   deps.sh GROUP...     build   what `make build` needs, Go apart when a new enough one is there
#                        cross   what `make release` needs for the other processor
#                        test    what `make test` needs beyond that
#                        lint    what `make verify` needs beyond that
#                        console what the pages of the web console are made with
#                        browser what `make console-test` shows the console in
#                        fresh   what `make fresh-test` needs beyond that
#                        conformance  what `make conformance` puts into images, beyond that
#                        ingress what `make ingress-clients` asks with
#                        guest   what `make guest-test` builds nftables and WireGuard for a second kernel with
#                        arm64   what `make arm64-test` needs beyond build and cross
#   deps.sh -n GROUP...  print the missing packages only
set -eu
cd "$(dirname "$0")/.."

only_print=
if [ "${1:-}" = -n ]; then only_print=yes; shift; fi

go_package() { # nothing when there is a Go that can at least fetch a newer one
  for go in go /usr/local/go/bin/go; do
    if command -v "$go" >/dev/null; then return; fi
  done
  echo golang-go
}

user_mode_linux() { # for the tests of power cuts and of IPVS, which say so when they have none
  if [ "$(dpkg --print-architecture)" = amd64 ] && grep -qx ID=debian /etc/os-release; then echo user-mode-linux; fi
}

packages() {
  for group in "$@"; do
    case $group in
      build) echo gcc libc6-dev make pkg-config libseccomp-dev binutils ca-certificates git; go_package ;;
      cross) case $(dpkg --print-architecture) in
          amd64) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross xz-utils ;;
          arm64) echo gcc-x86-64-linux-gnu libc6-dev-amd64-cross xz-utils ;;
        esac ;;
      test) echo iproute2 busybox-static util-linux mount procps e2fsprogs xfsprogs xz-utils curl systemd crun minisign; user_mode_linux ;;
      console) command -v npm >/dev/null || echo npm ;;
      browser) echo chromium-headless-shell ;;
      lint) echo shellcheck ;;
      fresh) echo debootstrap slirp4netns ;;
      conformance) echo bash-static curl bind9-dnsutils netcat-openbsd libc-bin iproute2 util-linux ;;
      arm64) echo qemu-system-arm busybox-static e2fsprogs ;;
      ingress) echo curl nghttp2-client ngtcp2-client python3 python3-websockets ;;
      guest) echo flex bison bc gcc make libc6-dev xz-utils binutils ;;
      *) echo "deps.sh: unknown group $group" >&2; exit 2 ;;
    esac
  done
}

installed() { dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

command -v dpkg-query >/dev/null || {
  echo "error: this script knows Debian and Ubuntu. Needed here: a C compiler, make, pkg-config, static libseccomp, binutils, git and Go" >&2
  exit 1
}
wanted=$(packages "$@")
missing=
for p in $wanted; do
  installed "$p" || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ -n "$only_print" ]; then echo "$missing"; exit 0; fi
[ "$(id -u)" = 0 ] || { echo "error: these packages are missing, and installing them takes root: sudo apt-get install$missing" >&2; exit 1; }

echo "installing Debian packages:$missing" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# A machine that has just started may be installing updates by itself: its lock is waited for.
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update -qq && apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends $missing; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "error: installing$missing failed; the messages of apt-get are above" >&2
  exit 1
fi
