#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a machine with a kernel of its own, a User-Mode Linux. Its root is the host's, read-only; its disk is at /run/disk; at /run/shared is the folder that it
# shares with the test: the files of modules to load, the tests' image, the arguments of its coracle, and that one's log; and what a test has to do before coracle begins,
# in prepare.sh. A client of its port 10 has a shell.
#
# The kernel hands over NAME, IP, SHARED, CORACLE (the program) and NFS (a folder of packaging/guest-nfs.sh's, or nothing).
set -u
export HOME=/run TMPDIR=/run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm /run/disk /run/shared /run/lock /run/etc
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t ext4 /dev/ubda /run/disk
mount -t hostfs none /run/shared -o "$SHARED"

while read -r module; do busybox insmod "$module" || echo "no module $module"; done < /run/shared/modules

# A folder of its own wherever something is written; a resolver that there is not.
cp -a /etc/. /run/etc/
rm -f /run/etc/resolv.conf
echo 'nameserver 10.77.0.1' > /run/etc/resolv.conf
mount --bind /run/etc /etc
for place in /var/lib /var/log; do
  mkdir -p "/run/disk/places$place"
  mount --bind "/run/disk/places$place" "$place"
done

# A kubelet does without neither a processor's clock rate nor its place, and this kernel tells none.
{ cat /proc/cpuinfo; echo 'cpu MHz : 1000.000'; } > /run/cpuinfo
mount --bind /run/cpuinfo /proc/cpuinfo
if [ ! -e /sys/devices/system/cpu/cpu0/topology ]; then
  mount -t tmpfs cpu /sys/devices/system/cpu
  mkdir -p /sys/devices/system/cpu/cpu0/topology
  for file in online possible present cpu0/topology/core_id cpu0/topology/physical_package_id; do echo 0 > "/sys/devices/system/cpu/$file"; done
fi

if [ -n "${NFS:-}" ]; then # /usr/sbin with programs more: mount looks for mount.nfs there and nowhere else
  mkdir -p /run/host-sbin /run/sbin /var/lib/nfs/v4recovery
  mount --bind /usr/sbin /run/host-sbin
  ln -s /run/host-sbin/* /run/sbin/
  for program in mount.nfs umount.nfs mount.nfs4 umount.nfs4 exportfs rpc.nfsd rpc.mountd; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/lib exec %s/bin/%s "$@"\n' "$NFS" "$NFS" "$program" > "/run/sbin/$program"
    chmod 755 "/run/sbin/$program"
  done
  cp -n "$NFS/netconfig" /etc/netconfig
  mount --bind /run/sbin /usr/sbin
fi

hostname "$NAME"
ip link set lo up
ip link set vec0 up
ip address add "$IP/24" dev vec0
ip route add default via 10.77.0.1
mount --make-rshared /
# shellcheck disable=SC3045 # the shells of Debian and of busybox have it
ulimit -n 65536
export PATH=/usr/sbin:/usr/bin
if [ -e /run/shared/box.tar ]; then
  mkdir -p /run/disk/data/images
  cp /run/shared/box.tar /run/disk/data/images/
fi
# shellcheck source=/dev/null # the test writes it
[ ! -e /run/shared/prepare.sh ] || . /run/shared/prepare.sh

busybox nc -ll -p 10 -e /bin/sh &
while :; do # as a service manager does
  # shellcheck disable=SC2046 # words
  "$CORACLE" $(cat "/run/shared/args-$NAME") >> "/run/shared/log-$NAME" 2>&1 &
  echo $! > /run/coracle.pid
  wait $!
  echo "coracle has ended with $?" >> "/run/shared/log-$NAME"
  sleep 1
done
