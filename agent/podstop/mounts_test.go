// SPDX-License-Identifier: Apache-2.0

package podstop

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/podkill"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// kernel has mount points of which some cannot be unmounted.
type kernel struct {
	mu     sync.Mutex
	points []string
	busy   string // until it is detached
	locked string // the kernel says that it is not mounted
	stuck  string // its server does not answer, until it is detached
	calls  []string
}

func (k *kernel) volumes() Volumes {
	return Volumes{Root: "/kubelet", unmount: k.unmount, mounted: k.mounted}
}

func (k *kernel) mounted(...string) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.points), nil
}

func (k *kernel) unmount(path string, flags int) error {
	k.mu.Lock()
	k.calls = append(k.calls, fmt.Sprintf("%s %d", path, flags&^unix.UMOUNT_NOFOLLOW))
	k.mu.Unlock()
	switch {
	case path == k.locked:
		return unix.EINVAL
	case flags&unix.MNT_DETACH != 0:
	case path == k.busy:
		return unix.EBUSY
	case path == k.stuck:
		time.Sleep(24 * time.Hour) // fake time
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.points = slices.DeleteFunc(k.points, func(p string) bool { return p == path })
	return nil
}

// TestUnmountFindsWhatIsLeft: the kernel says EINVAL of a mount that another one took along, and of one that is locked.
func TestUnmountFindsWhatIsLeft(t *testing.T) {
	k := &kernel{points: []string{"/kubelet/a", "/kubelet/b"}, locked: "/kubelet/a"}
	testenv.WantError(t, k.volumes().Unmount(t.Context()), "/kubelet/a is still mounted")
}

// TestUnmountDetachesWhatIsStuck: a file system whose server does not answer, and one that is in use, delay the others
// for a bounded time and are detached. That is an error: the volume may have writes that are not on its server.
func TestUnmountDetachesWhatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kernel{points: []string{"/kubelet/c", "/kubelet/b", "/kubelet/a"}, busy: "/kubelet/a", stuck: "/kubelet/b"}
		began := time.Now()
		err := k.volumes().Unmount(t.Context())
		testenv.WantError(t, err, "unmount /kubelet/a: device or resource busy", "unmount /kubelet/b: context deadline exceeded")
		testenv.Equal(t, time.Since(began), unmountTimeout, "it took")
		testenv.EqualSlices(t, k.calls, []string{"/kubelet/a 0", "/kubelet/a 2", "/kubelet/b 0", "/kubelet/b 2", "/kubelet/c 0"}, "calls:")
		time.Sleep(48 * time.Hour) // fake time: the call ends
	})
	k := &kernel{points: []string{"/kubelet/a"}}
	testenv.NoError(t, k.volumes().Unmount(t.Context()))
}

// TestVolumesAreUnmounted: mounts of pods and those that drivers make for all pods go, also hidden ones; others stay.
func TestVolumesAreUnmounted(t *testing.T) {
	testenv.RequireRoot(t, "mounting")
	root := t.TempDir()
	own := func(parts ...string) string { return filepath.Join(append([]string{root}, parts...)...) }
	mounts := []string{
		own("pods", "1", "volumes", "data"), own("pods", "1", "volumes", "data", "sub path"),
		own("plugins", "kubernetes.io", "csi", "driver", "1", "globalmount"), own("plugins", "driver", "own"), own("other"),
	}
	for _, m := range append(mounts, mounts[0]) { // a stacked one at last
		testenv.NoError(t, os.MkdirAll(m, 0o755))
		testenv.NoError(t, unix.Mount("none", m, "tmpfs", 0, ""))
		t.Cleanup(func() { _ = unix.Unmount(m, unix.MNT_DETACH) })
	}
	testenv.NoError(t, Volumes{Root: root, Disks: []string{root}}.Unmount(t.Context()))
	left := testenv.Must(podkill.MountsBelow(root))(t)
	slices.Sort(left)
	testenv.EqualSlices(t, left, []string{own("other"), own("plugins", "driver", "own")}, "still mounted:")
	testenv.WantError(t, Volumes{Root: root, Disks: []string{own("missing")}}.Unmount(t.Context()), "flush the file system of "+own("missing"))
}
