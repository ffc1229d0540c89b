#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks programs of others into a folder, with all that they need, for `make foreign-test`: host firewalls, Docker, FRR and network managers. Nothing is installed, and none of
# them is started. What their packages do when they are installed is done in the folder, as far as the tests need it.
#
#   foreign.sh ARCH DIR      DIR/root/usr and DIR/root/etc are what the packages bring
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh

packaging/debs.sh "$1" "$2" ufw firewalld docker.io iptables nftables dbus frr systemd network-manager
root=$(realpath "$2")/root
if [ -f "$root/whole" ]; then exit 0; fi

# Some packages still have their files at places that have long been links into /usr.
for place in bin sbin lib; do
  if [ -d "$root/$place" ]; then cp -a "$root/$place/." "$root/usr/$place/"; fi
done
# iptables comes in two kinds, and an alternative says which one the name means: today's.
for program in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
  ln -sfn xtables-nft-multi "$root/usr/sbin/$program"
done
cp -an "$root"/usr/share/ufw/iptables/*.rules "$root"/usr/share/ufw/ufw.conf "$root"/usr/share/ufw/*.init "$root/etc/ufw/"
touch "$root/whole"
