# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Makes a site from inside its new network namespace and then becomes the process that holds it: site.sh PROCESS.
set -eu
ip link set lo up
ip link add site type bridge forward_delay 0 mcast_snooping 0
ip addr add 10.77.0.1/24 dev site
ip link set site up
exec "$1"
