// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

const classNet = "/sys/class/net"

// badChecksums reports whether checksums of packets inside the tunnel have to be computed by software. Kernels before
// 5.7 compute wrong ones for packets that are translated twice on their way into a tunnel (a host's process, a Service,
// a pod of another node). VMware's device computes wrong ones for tunnels at flannel's port (docs/adr/0073).
func badChecksums(release, classNet, device string) bool {
	var major, minor int
	if n, err := fmt.Sscanf(release, "%d.%d", &major, &minor); n == 2 && err == nil && (major < 5 || major == 5 && minor < 7) {
		return true
	}
	return device != "" && hasDriver(classNet, device, "vmxnet3", 0)
}

// hasDriver reports whether a device has a driver, or one of the devices below it: a VLAN's or a bond's.
func hasDriver(classNet, device, driver string, depth int) bool {
	const deepest = 4 // a VLAN on a bond in a bridge, and one more
	if target, err := os.Readlink(filepath.Join(classNet, device, "device", "driver")); err == nil && filepath.Base(target) == driver {
		return true
	}
	lower, _ := filepath.Glob(filepath.Join(classNet, device, "lower_*")) // the pattern is no bad one
	return depth < deepest && slices.ContainsFunc(lower, func(l string) bool {
		return hasDriver(classNet, filepath.Base(l)[len("lower_"):], driver, depth+1)
	})
}

// kernelRelease returns the output of uname -r, or "" if the kernel does not report it.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return string(u.Release[:max(bytes.IndexByte(u.Release[:], 0), 0)])
}
