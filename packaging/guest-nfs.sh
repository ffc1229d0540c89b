#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Debian's NFS client and the programs of its kernel's NFS server, for a User-Mode Linux, whose kernel has both: unpacked into a folder, which it prints, and installed nowhere, since
# the packages start daemons on the machine. 1 MB is fetched, and nothing the second time.
#
#   guest-nfs.sh FOLDER
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
stamp=$(cksum < "$0")
if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ]; then echo "$folder"; exit; fi
rm -rf "$folder"
mkdir -p "$folder/packages" "$folder/bin" "$folder/lib"
cd "$folder/packages"
{
  apt-get update -qq
  apt-get download -qq -o APT::Sandbox::User=root nfs-common nfs-kernel-server libtirpc3 libtirpc-common libwrap0 libnsl2
} >&2
for package in *.deb; do dpkg-deb -x "$package" .; done
cp -P sbin/*mount.nfs* usr/sbin/exportfs usr/sbin/rpc.nfsd usr/sbin/rpc.mountd "$folder/bin/"
find . -name 'lib*.so.*' -exec cp -P {} "$folder/lib/" \;
cp etc/netconfig "$folder/"
cd "$folder"
rm -rf packages
echo "$stamp" > stamp
echo "$folder"
