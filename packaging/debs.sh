#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches Debian packages of a processor, with what they depend on, and unpacks them into a folder. The machine's own
# packages, lists and architectures stay as they are: apt works on a state of its own below the folder.
#
#   debs.sh ARCH DIR PACKAGE...      DIR/root is the unpacked tree, DIR/packages lists name, version and source
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh

arch=$(debian_arch "$1"); mkdir -p "$2"; dir=$(realpath "$2"); shift 2
command -v apt-get >/dev/null || die "this step needs apt-get (Debian or Ubuntu): it takes $* from the distribution.
On another distribution install a release binary; docs/install.md says how"

want="$arch $* $(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)"
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$want" ]; then exit 0; fi

rm -rf "$dir/root" "$dir/apt" "$dir/stamp"
mkdir -p "$dir/root" "$dir/apt/state/lists/partial" "$dir/apt/cache/archives/partial"
: > "$dir/apt/status"
apt=(apt-get -qq -o "APT::Architecture=$arch" -o "APT::Architectures::=$arch" -o APT::Install-Recommends=false
  -o "Dir::State=$dir/apt/state" -o "Dir::State::status=$dir/apt/status" -o "Dir::Cache=$dir/apt/cache"
  -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
  -o Acquire::Retries=3)

say "fetching Debian packages for $arch: $*"
"${apt[@]}" update >&2 || die "apt-get update failed for $arch; the package servers of /etc/apt have to be reachable"
"${apt[@]}" install --download-only --yes "$@" >&2
for deb in "$dir"/apt/cache/archives/*.deb; do
  dpkg-deb --extract "$deb" "$dir/root"
  # shellcheck disable=SC2016 # the format is dpkg-deb's own
  dpkg-deb --show --showformat '${Package} ${Version} source ${source:Package} ${source:Version}\n' "$deb"
done | sort > "$dir/packages"
rm -rf "$dir/apt"
printf '%s' "$want" > "$dir/stamp"
