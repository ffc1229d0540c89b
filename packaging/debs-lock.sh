#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes packaging/debs.lock again: the Debian packages that a release carries, as this machine's distribution has them now. Look at the difference before it is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for arch in amd64 arm64; do
  packaging/debs.sh "$arch" "$work/nft-$arch" nftables
  packaging/debs.sh "$arch" "$work/seccomp-$arch" libseccomp-dev
done
others=$(grep -v "^$release " packaging/debs.lock || true) # of other distributions
{ [ -z "$others" ] || printf '%s\n' "$others"; cat "$work"/*/lock; } | sort -u > "$work/lock"
cp "$work/lock" packaging/debs.lock
say "packaging/debs.lock has $(grep -c . packaging/debs.lock) packages now; git diff packaging/debs.lock shows what has changed"
