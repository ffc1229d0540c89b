#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Debian's User-Mode Linux has IPVS, and neither nftables for IP nor WireGuard. This builds what it lacks as modules for it, eighteen and four, from the very source that it was
# built from, and prints the folder that they are in: a minute of processor time, after 140 MB were fetched; nothing the second time. Where Debian has that
# source no more, it builds a whole kernel that has IPVS and nftables, from a newer one: six minutes.
#
#   guest-nftables.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
"$here/deps.sh" test guest >&2
command -v linux.uml >/dev/null || { echo "error: this needs User-Mode Linux, the package user-mode-linux, which Debian has for amd64" >&2; exit 1; }

# One at a time: a second run on the same folder would remove what the first one compiles.
exec 9>"$folder.lock"
flock -n 9 || { echo "waiting for another run that builds in $folder" >&2; flock 9; }

release=$(basename /usr/lib/uml/modules/*)
stamp="$release $(cat "$0" "$here/guest-kernel.config" | cksum)"
if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ]; then echo "$folder"; exit; fi

# In the order in which they have to be loaded.
nftables='
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
wireguard='
lib/crypto/libcurve25519-generic
lib/crypto/libcurve25519
lib/crypto/libchacha20poly1305
drivers/net/wireguard/wireguard
'
source=$folder/source

# fetch VERSION TAR-OPTION...: the source of that version.
fetch() {
  version=$1
  shift
  apt-get download -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 "linux-source-6.1=$version"
  echo "fetched after $(seconds)s"
  dpkg-deb --fsys-tarfile ./linux-source-6.1_*.deb | tar -xO ./usr/src/linux-source-6.1.tar.xz | xz -dc -T0 | tar -x --strip-components=1 "$@"
  rm -f ./linux-source-6.1_*.deb
  echo "unpacked after $(seconds)s"
}

build_modules() {
  # What these need of most folders and of other processors is their Kconfig: a fifth of the files.
  # shellcheck disable=SC2046 # a list of words
  fetch "$1" --exclude='*/arch/[!ux]*/*.[chS]' --exclude='*/arch/[!ux]*/*.dts*' --exclude='linux-source-6.1/Documentation/*/*' --exclude='linux-source-6.1/tools/*' \
    $(for d in block/ crypto/ fs/ ipc/ mm/ rust/ samples/ sound/ virt/ 'drivers/[!n]' 'drivers/n[!e]' 'drivers/net/[!w]' 'drivers/net/w[!i]' drivers/net/wireless/; do
      echo "--exclude=linux-source-6.1/$d*.[chS]"; done)
  linux.uml --showconfig > .config
  # Debugging information would be stripped.
  scripts/config --enable NF_TABLES_INET --enable NF_TABLES_IPV4 --enable NF_TABLES_IPV6 --module NFT_NAT \
    --module NFT_FIB_IPV4 --module NFT_FIB_IPV6 --module NFT_FIB_INET --module WIREGUARD --disable DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT --enable DEBUG_INFO_NONE
  make -s ARCH=um olddefconfig
  make -s ARCH=um -j"$(nproc)" modules_prepare
  # The symbols of the kernel itself are not known here: so many warnings.
  # shellcheck disable=SC2046,SC2086 # lists of words
  make -s ARCH=um -j"$(nproc)" KBUILD_MODPOST_WARN=1 $(printf '%s.ko ' $nftables $wireguard) 2>modpost || { cat modpost; exit 1; }
  # shellcheck disable=SC2086 # lists of words
  install_modules order $nftables
  # shellcheck disable=SC2086 # lists of words
  install_modules order.wireguard $wireguard
}

# install_modules LIST MODULE...: their files, and a file LIST with their names.
install_modules() {
  list=$folder/$1
  shift
  for m in "$@"; do
    file=$(basename "$m").ko
    strip --strip-debug -o "$folder/$file" "$m.ko"
    echo "$file" >> "$list"
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

start=$(date +%s)
seconds() { echo $(($(date +%s) - start)); }

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
echo "built after $(seconds)s, in $folder" >&2
echo "$folder"
