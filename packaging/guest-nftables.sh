#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds a User-Mode Linux that has both nftables and IPVS, from Debian's linux-source, and prints where it is. Debian's own has IPVS only.
# A quarter of an hour on two busy cores, some 750 files; nothing the second time.
#
#   guest-kernel.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
config=$here/guest-kernel.config
if [ -x "$folder/linux" ] && cmp -s "$config" "$folder/config"; then echo "$folder/linux"; exit; fi

"$here/deps.sh" guest >&2
rm -rf "$folder/source"
mkdir "$folder/source"
tar -xf /usr/src/linux-source-6.1.tar.xz -C "$folder/source" --strip-components=1
cd "$folder/source"
{
  make ARCH=um KCONFIG_ALLCONFIG="$config" allnoconfig
  make ARCH=um -j"$(nproc)" linux
} >&2
for option in IP_VS NF_TABLES_IPV4 NF_TABLES_IPV6 NFT_FIB_IPV4 NFT_NAT VETH DUMMY; do
  grep -qx "CONFIG_$option=y" .config || { echo "error: this kernel's source does not take CONFIG_$option" >&2; exit 1; }
done
strip -o "$folder/linux" linux
cp "$config" "$folder/config"
rm -rf "$folder/source"
echo "$folder/linux"
