// SPDX-License-Identifier: Apache-2.0

package podkill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// UnmountBelow unmounts everything below the folders, the last mounted first. The folders themselves stay mounted: they
// may be mount points of the operator.
func UnmountBelow(dirs ...string) error {
	var errs []error
	for range 3 { // another round finds mounts only where some were stacked on one mount point
		points, err := MountsBelow(dirs...)
		if err != nil {
			return err
		}
		if len(points) == 0 {
			return nil
		}
		errs = nil
		for i := len(points) - 1; i >= 0; i-- {
			err := unix.Unmount(points[i], unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EBUSY) {
				err = unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
			if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it was unmounted with another mount
				errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
			}
		}
	}
	return errors.Join(errs...)
}

// MountsBelow returns the mount points below the folders in the order in which they were mounted.
func MountsBelow(dirs ...string) ([]string, error) {
	return mountsBelow("/proc/self/mountinfo", dirs...)
}

// mountsBelow reads the mount points from a file (proc(5)).
func mountsBelow(file string, dirs ...string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescape.Replace(f[4])
		for _, dir := range dirs {
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				dir = real
			}
			if strings.HasPrefix(point, dir+"/") {
				out = append(out, point)
				break
			}
		}
	}
	return out, nil
}

// unescape replaces the octal escapes by which the kernel writes white space and backslashes in paths.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
