# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
# Makes a machine from inside its new namespaces and then becomes its first process. Run by machine.go:
#
#   machine.sh DIR NUMBER FIRST-PROCESS NEEDED...
#
# DIR is the machine's own folder. NEEDED are the folders of the host that have to stay in sight. Descriptor 3 is the
# network namespace of the site that the machine is on.
set -eu
dir=$1 number=$2 first=$3
shift 3
mount --make-rprivate /

# needed PATH: one of the needed folders is PATH or below it.
list=$(printf '%s\n' "$dir" "$@")
needed() {
  while IFS= read -r path; do
    case $path/ in "$1"/*) return 0 ;; esac
  done <<LIST
$list
LIST
  return 1
}

# Mounts of the host that the machine does not need go, the last one first: a cluster that runs on the host has many,
# and they would come and go in the machine's list too.
awk '{ print $5 }' /proc/self/mountinfo | tac | while IFS= read -r point; do
  case $point in
    /dev/* | /proc/* | /sys/* | /usr/* | /etc/*) continue ;;
    /run | /*/*) ;;
    *) continue ;;
  esac
  point=$(printf '%b' "$point")
  needed "$point" || umount -l "$point" 2>/dev/null || true # gone with the one that it was in
done

# What is needed is held while the places above it are covered.
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netns /run/held
count=0
printf '%s\n' "$list" | while IFS= read -r path; do
  count=$((count + 1))
  mkdir "/run/held/$count"
  mount --bind "$path" "/run/held/$count"
done

# The machine has folders of its own wherever coracle, its installer or a kubelet writes.
mkdir -p "$dir/places"
if [ ! -d "$dir/places/etc" ]; then # the second time the machine is switched on, it has them
  tries=0
  until cp -a /etc "$dir/places/etc"; do # files come and go there while the host installs packages
    tries=$((tries + 1))
    [ "$tries" -lt 20 ]
    rm -rf "$dir/places/etc"
  done
  rm -rf "$dir/places/etc/coracle" "$dir/places/etc/cni" "$dir/places/etc/systemd/system/coracle.service"* \
    "$dir/places/etc/systemd/system/multi-user.target.wants/coracle.service" "$dir/places/etc/init.d/coracle"
fi
for place in /etc /usr/local/bin /var/lib /var/log /opt /root; do
  [ -d "$place" ] || continue
  mkdir -p "/run/held/1/places$place"
  mount --bind "/run/held/1/places$place" "$place"
done
count=0
printf '%s\n' "$list" | while IFS= read -r path; do
  count=$((count + 1))
  if [ "$(stat -c %d:%i "$path" 2>&1)" != "$(stat -c %d:%i "/run/held/$count")" ]; then # it is covered
    mkdir -p "$path"
    mount --bind "/run/held/$count" "$path"
  fi
  umount "/run/held/$count"
  rmdir "/run/held/$count"
done
rmdir /run/held

umount -l /sys # with the host's cgroups in it
mount -t sysfs sys /sys
controllers=$(awk -F: '$1 != 0 && $2 !~ /^name=/ {print $2}' /proc/self/cgroup)
if [ -n "$controllers" ]; then
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  for c in $controllers; do
    mkdir -p "/sys/fs/cgroup/$c"
    mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
  done
  if mkdir /sys/fs/cgroup/systemd; then mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd || true; fi
else
  mount -t cgroup2 cgroup /sys/fs/cgroup
  mkdir -p /sys/fs/cgroup/init
  echo 0 > /sys/fs/cgroup/init/cgroup.procs
fi
mount --make-rshared /

# Each start of the machine is a boot of its own, though the kernel's is one.
cat /proc/sys/kernel/random/uuid > /run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id

rm -f /etc/resolv.conf
printf 'nameserver 10.77.0.1\n' > /etc/resolv.conf

# One link to the site's bridge.
: > /run/netns/outside
mount --bind /proc/self/fd/3 /run/netns/outside
exec 3<&-
ip link set lo up
ip link add eth0 address "$(printf '02:00:00:00:00:%02x' "$number")" type veth peer name "machine$number" netns outside
ip -n outside link set "machine$number" master site
ip -n outside link set "machine$number" up
ip addr add "10.77.0.$((number + 1))/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1
exec "$first"
