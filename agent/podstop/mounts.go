// SPDX-License-Identifier: Apache-2.0

package podstop

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/podkill"
)

const (
	// unmountTimeout is how long one file system may take to be unmounted: a server that does not answer keeps it.
	unmountTimeout = 5 * time.Second
	// unmountTime bounds the end of all mounts.
	unmountTime = 20 * time.Second
	// syncTimeout bounds writing what is not on the disk yet.
	syncTimeout = 5 * time.Second
)

// Volumes are the mounts of a node's volumes.
type Volumes struct {
	// Root is the kubelet's folder.
	Root string
	// Disks are folders on the file systems that are flushed in the end.
	Disks []string

	// unmount and mounted are replaced by tests; nil means the kernel's.
	unmount func(path string, flags int) error
	mounted func(below ...string) ([]string, error) // in the order in which they were mounted
}

// Unmount unmounts the volumes of all pods, the last mounted one first. A file system that cannot be unmounted in time
// is detached: it is gone once its last user is. Then it flushes Disks. An error means that not all was unmounted in
// order.
func (v Volumes) Unmount(ctx context.Context) error {
	if v.unmount == nil {
		v.unmount, v.mounted = unix.Unmount, podkill.MountsBelow
	}
	ctx, cancel := context.WithTimeout(ctx, unmountTime)
	defer cancel()
	// Pods' volumes, and those that drivers mount once for all pods. Other mounts of a driver are its own.
	volumes := []string{filepath.Join(v.Root, "pods"), filepath.Join(v.Root, "plugins", "kubernetes.io")}
	points, err := v.mounted(volumes...)
	errs := []error{err}
	for _, point := range slices.Backward(points) {
		if err := v.unmountOne(ctx, point); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	rest, err := v.mounted(volumes...)
	errs = append(errs, err)
	for _, point := range rest {
		errs = append(errs, fmt.Errorf("%s is still mounted", point))
	}
	for _, disk := range v.Disks {
		if _, err := bounded(context.WithoutCancel(ctx), syncTimeout, flush, disk); err != nil {
			errs = append(errs, fmt.Errorf("flush the file system of %s: %w", disk, err))
		}
	}
	return errors.Join(errs...)
}

// unmountOne unmounts a file system, or detaches it and returns why.
func (v Volumes) unmountOne(ctx context.Context, point string) error {
	unmount := func(_ context.Context, flags int) (struct{}, error) {
		return struct{}{}, v.unmount(point, flags|unix.UMOUNT_NOFOLLOW)
	}
	_, err := bounded(ctx, unmountTimeout, unmount, 0)
	switch {
	case err == nil, errors.Is(err, unix.EINVAL): // EINVAL: it was unmounted with another mount
		return nil
	}
	_, detached := bounded(context.WithoutCancel(ctx), unmountTimeout, unmount, unix.MNT_DETACH)
	return errors.Join(err, detached)
}

// flush writes the file system of a folder to its disk.
func flush(_ context.Context, folder string) (struct{}, error) {
	fd, err := unix.Open(folder, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return struct{}{}, err
	}
	defer unix.Close(fd)
	return struct{}{}, unix.Syncfs(fd)
}
