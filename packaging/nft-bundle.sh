#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts Debian's nft program, its shared libraries and its loader into one folder that needs nothing of the host:
#
#   DIR/ld.so --library-path DIR --argv0 nft DIR/nft ...
#
# nft and its libraries are under the GPL and the LGPL: they are embedded as separate programs, with their notices
# (DIR/COPYRIGHT) and their exact versions (DIR/PACKAGES).
#
#   nft-bundle.sh ARCH WORK DIR
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh
arch=$1 work=$2 out=$3

packaging/debs.sh --locked "$arch" "$work" nftables
root=$work/root
lib=$(triplet "$arch")

# find_library NAME prints where the tree has it, symbolic links followed within the tree.
find_library() {
  local d
  for d in "lib/$lib" "usr/lib/$lib" lib lib64; do
    if [ -e "$root/$d/$1" ]; then realpath "$root/$d/$1"; return; fi
  done
  die "the Debian packages for $arch lack $1, which nft needs"
}
needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

rm -rf "$out.new"; mkdir -p "$out.new"
install -m 755 "$root/usr/sbin/nft" "$out.new/nft"
queue=("$out.new/nft")
while [ ${#queue[@]} -gt 0 ]; do
  file=${queue[0]}; queue=("${queue[@]:1}")
  while read -r name; do
    case $name in ld-linux*) continue ;; esac # the loader, below
    [ -e "$out.new/$name" ] && continue
    install -m 644 "$(find_library "$name")" "$out.new/$name"
    queue+=("$out.new/$name")
  done < <(needed "$file")
done
loader=$(readelf -l "$out.new/nft" | sed -n 's/.*program interpreter: \(.*\)\]/\1/p')
install -m 755 "$(find_library "$(basename "$loader")")" "$out.new/ld.so"

cp "$work/packages" "$out.new/PACKAGES"
{
  cat <<'TXT'
The files in this folder are programs and libraries of the Debian project, unchanged, apart from protocols.so, which is
coracle's own. coracle runs nft as a separate program. PACKAGES names each package with its version and its source package; the sources of exactly these versions are
in Debian's snapshot archive for everybody, for free. The notices and licenses of each package follow.
TXT
  for f in "$root"/usr/share/doc/*/copyright; do
    printf '\n======== %s ========\n' "$(basename "$(dirname "$f")")"
    cat "$f"
  done
} > "$out.new/COPYRIGHT"
chmod 644 "$out.new/PACKAGES" "$out.new/COPYRIGHT"
rm -rf "$out"; mv "$out.new" "$out"
