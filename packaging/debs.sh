#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches Debian packages of a processor, with what they depend on, and unpacks them into a folder. The machine's own
# packages, lists and architectures stay as they are: apt works on a state of its own below the folder.
#
#   debs.sh [--locked] ARCH DIR PACKAGE...      DIR/root is the unpacked tree, DIR/packages lists name, version and source,
#                                               DIR/lock the lines of packaging/debs.lock for them
#
# What a release carries is fetched with --locked: each file is compared with packaging/debs.lock (distribution, processor, name, version, SHA-256). apt verifies
# the distribution's signature in any case. Its servers keep the newest version alone, so another version than the lock's is a security update as a rule: it is taken, with a
# warning, and make debs-lock writes it down. The same version with other content is refused.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
lock=${DEBS_LOCK:-packaging/debs.lock} # another one in tests

# compare_lock HAVE compares lines of the lock with it.
compare_lock() {
  local differs=say warning='warning: '
  if [ -n "${TRIMPATH:-}" ]; then differs=die warning=''; fi # a release carries what the lock names
  local release arch name version sum known='' other=''
  while read -r release arch name version sum; do
    [ -z "$known" ] && grep -q "^$release $arch " "$lock" && known=yes
    case $(grep "^$release $arch $name " "$lock") in
      "$release $arch $name $version $sum") ;;
      "$release $arch $name $version "*)
        die "$name $version for $arch has the SHA-256 $sum, and another one in $lock: a distribution never publishes two files of one version.
Nothing of it is used. Find out where it comes from: your mirror, or a change of the lock" ;;
      *) other="$other $name=$version" ;;
    esac
  done < "$1"
  if [ -z "$known" ]; then
    read -r release arch _ < "$1"
    "$differs" "$warning$lock has no packages of $release for $arch; those of this build are verified by the signatures of apt alone"
  elif [ -n "$other" ]; then
    "$differs" "${warning}other versions than in $lock, verified by the signatures of apt alone:$other
  An update of the distribution, as a rule: a release takes none that the lock does not name. make debs-lock writes them down"
  fi
}
if [ "${1:-}" = --compare ]; then compare_lock "$2"; exit 0; fi # for tests
locked=
if [ "${1:-}" = --locked ]; then locked=$(sha256sum < "$lock"); shift; fi

arch=$(debian_arch "$1"); mkdir -p "$2"; dir=$(realpath "$2"); shift 2
command -v apt-get >/dev/null || die "this step needs apt-get (Debian or Ubuntu): it takes $* from the distribution.
On another distribution install a release binary; docs/install.md says how"

release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
want="$arch $* $release $locked"
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
  # shellcheck disable=SC2016 # the same
  printf '%s %s %s %s\n' "$release" "$arch" "$(dpkg-deb --show --showformat '${Package} ${Version}' "$deb")" "$(sha256sum "$deb" | cut -d ' ' -f 1)" >&3
done 3> "$dir/lock" | sort > "$dir/packages"
[ -z "$locked" ] || compare_lock "$dir/lock"
rm -rf "$dir/apt"
printf '%s' "$want" > "$dir/stamp"
