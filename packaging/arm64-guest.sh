#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes what an emulated machine with an arm64 processor boots from, for `make arm64-test`: Debian's kernel, and a first file system with busybox and the modules of the disk.
#
#   arm64-guest.sh DIR       DIR/vmlinuz and DIR/initramfs; DIR/modules is the kernel's folder, DIR/busybox the program
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/lib.sh

mkdir -p "$1"; dir=$(realpath "$1")
packaging/debs.sh arm64 "$dir/debian" linux-image-arm64 busybox-static
stamp="$(cat "$dir/debian/packages" "$0" | sha256sum)"
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then exit 0; fi
rm -rf "$dir/stamp" "$dir/modules" "$dir/first"

root=$dir/debian/root
version=$(ls "$root/lib/modules")
busybox depmod -b "$root" "$version"
ln -s "debian/root/lib/modules" "$dir/modules"
ln -sf debian/root/bin/busybox "$dir/busybox"
ln -sf "debian/root/boot/vmlinuz-$version" "$dir/vmlinuz"

first=$dir/first
mkdir -p "$first"/{bin,dev,proc,sys,new,lib/modules}
cp "$root/bin/busybox" "$first/bin/"
: > "$first/order"
# needs FILE prints the modules that it needs, the deepest first, and itself.
needs() {
  sed -n "s|^$1: *||p" "$root/lib/modules/$version/modules.dep" | tr ' ' '\n' | tac
  echo "$1"
}
for module in virtio_pci virtio_mmio virtio_blk crc32c_generic ext4; do
  file=$(sed -n "s|^\([^:]*/$module\.ko\):.*|\1|p" "$root/lib/modules/$version/modules.dep")
  if [ -n "$file" ]; then needs "$file"; fi
done | awk 'NF && !seen[$0]++' > "$first/order"
while read -r file; do
  cp "$root/lib/modules/$version/$file" "$first/lib/modules/"
done < "$first/order"
sed -i 's|.*/||' "$first/order"
cat > "$first/init" <<'EOF'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/lib/modules/$module" || echo "no module $module"; done < /order
until [ -b /dev/vda ]; do /bin/busybox usleep 100000; done
/bin/busybox mount -t ext4 /dev/vda /new || exec /bin/busybox sh
exec /bin/busybox switch_root /new /board.sh
EOF
chmod 755 "$first/init"
(cd "$first" && find . | sort | busybox cpio -o -H newc) > "$dir/initramfs" 2>/dev/null
printf '%s' "$stamp" > "$dir/stamp"
