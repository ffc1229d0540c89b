#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Debian's User-Mode Linux has IPVS, and no nftables for IP. This builds what it lacks as modules for it, eighteen of them, from the very source that it was
# built from, and prints the folder that they are in: a minute of processor time, after 140 MB were fetched; nothing the second time. Where Debian has that
# source no more, it builds a whole kernel that has both, from a newer one: six minutes.
#
#   guest-nftables.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
"$here/deps.sh" test guest >&2
release=$(basename /usr/lib/uml/modules/*)
stamp="$release $(cat "$0" "$here/guest-kernel.config" | cksum)"
if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ]; then echo "$folder"; exit; fi

# In the order in which they have to be loaded.
modules='
net/netfilter/nf_nat
net/netfilter/nf_tables
net/netfilter/nft_ct
net/netfilter/nft_fib
net/ipv4/netfilter/nft_fib_ipv4
net/ipv6/netfilter/nft_fib_ipv6
net/netfilter/nft_fib_inet
net/netfilter/nft_chain_nat
net/netfilter/nft_nat
net/netfilter/nft_masq
net/netfilter/nft_redir
net/netfilter/nft_reject
net/ipv4/netfilter/nft_reject_ipv4
net/ipv6/netfilter/nft_reject_ipv6
net/netfilter/nft_reject_inet
net/netfilter/nft_numgen
net/netfilter/nft_hash
net/netfilter/nft_limit
'
source=$folder/source

# fetch VERSION TAR-OPTION...: the source of that version.
fetch() {
  version=$1
  shift
  apt-get download -qq -o APT::Sandbox::User=root "linux-source-6.1=$version"
  dpkg-deb --fsys-tarfile ./linux-source-6.1_*.deb | tar -xO ./usr/src/linux-source-6.1.tar.xz | tar -xJ --strip-components=1 "$@"
  rm -f ./linux-source-6.1_*.deb
}

build_modules() {
  # What these need of drivers and other processors is their Kconfig.
  fetch "$1" --exclude='*/drivers/*.[chS]' --exclude='*/sound/*.[ch]' --exclude='*/arch/[!ux]*.[chS]' --exclude='*.dts*' --exclude='*/Documentation/*.rst' \
    --exclude='*/Documentation/*.yaml' --exclude='*/tools/testing/*'
  linux.uml --showconfig > .config
  scripts/config --enable NF_TABLES_INET --enable NF_TABLES_IPV4 --enable NF_TABLES_IPV6 --module NFT_NAT \
    --module NFT_FIB_IPV4 --module NFT_FIB_IPV6 --module NFT_FIB_INET
  make -s ARCH=um olddefconfig
  make -s ARCH=um -j"$(nproc)" modules_prepare
  # The symbols of the kernel itself are not known here: so many warnings.
  # shellcheck disable=SC2046,SC2086 # lists of words
  make -s ARCH=um -j"$(nproc)" KBUILD_MODPOST_WARN=1 $(printf '%s.ko ' $modules) 2>modpost || { cat modpost; exit 1; }
  for m in $modules; do
    file=$(basename "$m").ko
    strip --strip-debug -o "$folder/$file" "$m.ko"
    echo "$file" >> "$folder/order"
  done
}

build_kernel() {
  fetch "$1"
  make ARCH=um KCONFIG_ALLCONFIG="$here/guest-kernel.config" allnoconfig
  make ARCH=um -j"$(nproc)" linux
  for option in IP_VS NF_TABLES_IPV4 NF_TABLES_IPV6 NFT_FIB_IPV4 NFT_NAT VETH DUMMY; do
    grep -qx "CONFIG_$option=y" .config || { echo "error: this kernel's source does not take CONFIG_$option"; exit 1; }
  done
  strip -o "$folder/linux" linux
}

rm -rf "$folder"
mkdir -p "$source"
cd "$source"
{
  apt-get update -qq
  versions=$(apt-cache madison linux-source-6.1 | awk '{ print $3 }')
  same=$(echo "$versions" | grep -m 1 "^$release-" || true)
  if [ -n "$same" ]; then
    build_modules "$same"
  else
    echo "Debian has no source of Linux $release, of which its user-mode-linux is: building a whole kernel instead"
    build_kernel "$(echo "$versions" | head -n 1)"
  fi
} >&2
cd "$folder"
rm -rf "$source"
echo "$stamp" > "$folder/stamp"
echo "$folder"
