// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// suitable says why this kernel is too old. Before 5.9, IPVS delays a client that uses its port again by a second, or sends it
// to a real server that is gone, whatever conn_reuse_mode says, once conntrack knows its connections (kubernetes 81775).
func suitable() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("asking for the kernel's version: %w", err)
	}
	return newEnough(unix.ByteSliceToString(u.Release[:]))
}

func newEnough(release string) error {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("reading the kernel's version %q: %w", release, err)
	}
	if major < 5 || major == 5 && minor < 9 {
		return fmt.Errorf("the kernel is %s, and IPVS loses connections before 5.9", release)
	}
	return nil
}
