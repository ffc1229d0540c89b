# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Makes a site from inside its new network namespace and then becomes the process that holds it: site.sh PROCESS.
set -eu
ip link set lo up
# Without an address of its own a bridge takes that of a port, and another one when that port goes: then no neighbour finds it for as long as neighbours remember the old one.
ip link add site address 02:00:00:00:02:01 type bridge forward_delay 0 mcast_snooping 0
ip addr add 10.77.0.1/24 dev site
ip link set site up
exec "$1"
