// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRemovalFollowsNoLinkOutOfTheVolume: what a pod planted in its volume leads nowhere.
func TestRemovalFollowsNoLinkOutOfTheVolume(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "storage")
	f := newFolders(t, folder)
	board := status.NewBoard(time.Now)
	run(t, f, board)
	path := do(t, f, Request{Op: Make, Name: volume}).Path
	outside := filepath.Join(dir, "outside")
	write(t, filepath.Join(outside, "deep", "file"), "x")
	write(t, filepath.Join(path, "sub", "dir", "file"), "x")
	for link, to := range map[string]string{
		"absolute": outside, "relative": "../../outside", "sub/up": "../..", "sub/dir/root": "/", "file": filepath.Join(outside, "deep", "file"), "loop": "loop",
	} {
		testenv.NoError(t, os.Symlink(to, filepath.Join(path, link)))
	}
	testenv.NoError(t, os.Link(filepath.Join(outside, "deep", "file"), filepath.Join(path, "hard")))
	testenv.NoError(t, unix.Mkfifo(filepath.Join(path, "fifo"), 0o600))
	for i := range 3 * batch {
		write(t, filepath.Join(path, "many", strconv.Itoa(i)), "")
	}
	if os.Getuid() == 0 { // others could not look into it
		testenv.NoError(t, os.Chmod(filepath.Join(path, "sub"), 0))
	}
	do(t, f, Request{Op: Remove, Name: volume})
	testenv.ErrorIs(t, testenv.Err(os.Lstat(path)), os.ErrNotExist, "right after the answer the volume is there")
	do(t, f, Request{Op: Remove, Name: volume}) // who was not heard asks again
	empty(t, folder)
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(outside, "deep", "file")))(t)), "x", "what lies outside is")
	// The same claim's name may come again and go again.
	for range 3 {
		do(t, f, Request{Op: Make, Name: volume})
		do(t, f, Request{Op: Remove, Name: volume})
	}
	empty(t, folder)
	testenv.Eventually(t, 2*time.Minute, "the board is content", func() error {
		if c := board.Components()[0]; c.State != status.Running || c.Message != folder {
			return errors.New(string(c.State) + " " + c.Message)
		}
		return nil
	})
}

// TestSetAsideVolumesAreRemovedAtStart: what an earlier run set aside goes at the start of the next, and nothing else
// does.
func TestSetAsideVolumesAreRemovedAtStart(t *testing.T) {
	folder := t.TempDir()
	f := newFolders(t, folder)
	path := do(t, f, Request{Op: Make, Name: volume}).Path
	write(t, filepath.Join(path, "data"), "kept")
	other := strings.Replace(volume, "0a1b", "ffff", 1)
	write(t, filepath.Join(folder, other, "file"), "x")
	do(t, f, Request{Op: Remove, Name: other}) // no process removes it
	if left, err := os.ReadDir(folder); err != nil || len(left) != 2 {
		t.Fatalf("left: %v, %v", left, err)
	}
	again := newFolders(t, folder)
	run(t, again, status.NewBoard(time.Now))
	testenv.Eventually(t, 2*time.Minute, "the volume alone is left", func() error {
		left, err := os.ReadDir(folder)
		if err == nil && len(left) != 1 {
			err = errors.New("there is more")
		}
		return err
	})
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(path, "data")))(t)), "kept", "the volume that stays has")
}

// TestRemoveHandlesDeeplyNestedDirectories: a pod nests more directories than the process may have open files.
func TestRemoveHandlesDeeplyNestedDirectories(t *testing.T) {
	folder := t.TempDir()
	f := newFolders(t, folder)
	path := do(t, f, Request{Op: Make, Name: volume}).Path
	const depth = 3*maxDepth + 7
	deep := filepath.Join(path, strings.Repeat("d/", depth))
	write(t, filepath.Join(deep, "file"), "x")
	write(t, filepath.Join(path, strings.Repeat("d/", maxDepth), "file"), "x")
	run(t, f, status.NewBoard(time.Now))
	do(t, f, Request{Op: Remove, Name: volume})
	empty(t, folder)
}

// inMountNamespace runs f on a thread whose mounts are its own. The thread ends with it.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	testenv.RequireRoot(t, "mounting")
	testenv.NoError(t, netlinkutil.Do(func() error {
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			f()
		}
		return err
	}))
}

// TestRemoveKeepsMountedContent: what is mounted in a volume is not the volume's.
func TestRemoveKeepsMountedContent(t *testing.T) {
	inMountNamespace(t, func() {
		dir := t.TempDir()
		folder, outside := filepath.Join(dir, "storage"), filepath.Join(dir, "outside")
		write(t, filepath.Join(outside, "file"), "x")
		f := newFolders(t, folder)
		a, err := f.Do(Request{Op: Make, Name: volume})
		if err != nil {
			t.Error(err)
			return
		}
		at := filepath.Join(a.Path, "sub", "mount")
		if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount(outside, at, "", unix.MS_BIND, "")); err != nil {
			t.Error(err)
			return
		}
		refuses(t, f, Request{Op: Remove, Name: volume}, "mounted at "+at)
		// Mounted a moment later, when the volume was set aside already.
		testenv.Check(t, os.Rename(a.Path, filepath.Join(folder, asideName(volume, 0))))
		testenv.ErrorIs(t, f.removeRenamed(t.Context()), errMounted, "cleaning")
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(outside, "file")))(t)), "x", "what was mounted has")
		testenv.Check(t, unix.Unmount(filepath.Join(folder, asideName(volume, 0), "sub", "mount"), 0))
		testenv.Check(t, f.removeRenamed(t.Context()))
		if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// TestUndeletableFileBlocksNoOtherRemoval: what cannot be removed keeps nothing else, wherever it lies and whatever the
// order of names.
func TestUndeletableFileBlocksNoOtherRemoval(t *testing.T) {
	inMountNamespace(t, func() {
		dir := t.TempDir()
		folder, outside := filepath.Join(dir, "storage"), filepath.Join(dir, "outside")
		write(t, filepath.Join(outside, "file"), "x")
		f := newFolders(t, folder)
		set := filepath.Join(folder, asideName(volume, 0))
		for _, stuck := range []string{"b/b/stuck", "b/stuck", "stuck"} {
			at := filepath.Join(set, stuck)
			if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount(outside, at, "", unix.MS_BIND, "")); err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = unix.Unmount(at, 0) }()
		}
		for _, in := range []string{"", "a", "b", "b/a", "b/b", "b/c", "c"} {
			n := 3
			if in == "b" {
				n = batch + 1
			}
			for i := range n {
				write(t, filepath.Join(set, in, strconv.Itoa(i)), "")
			}
		}
		testenv.ErrorIs(t, f.removeRenamed(t.Context()), errMounted, "cleaning")
		left := 0
		err := filepath.WalkDir(set, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "stuck" {
				return filepath.SkipDir
			}
			left++
			return err
		})
		if err != nil || left != 3 { // the directories on the way to what is stuck
			t.Errorf("%d entries are left, %v", left, err)
		}
	})
}

// TestFullOrReadOnlyDiskIsNamed: a full disk and one that is read-only are named, and nothing half-made counts as a
// volume.
func TestFullOrReadOnlyDiskIsNamed(t *testing.T) {
	inMountNamespace(t, func() {
		folder := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.Mkdir(folder, 0o700), unix.Mount("none", folder, "tmpfs", 0, "size=1m,nr_inodes=8,mode=0700")); err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = unix.Unmount(folder, 0) }()
		f := newFolders(t, folder)
		refuses(t, f, Request{Op: Make, Name: volume, Bytes: 2 << 20}, "are free in "+folder)
		testenv.Check(t, testenv.Err(f.Do(Request{Op: Make, Name: volume, Bytes: 1 << 19})))
		for i := range 8 { // until there are no more files
			_ = os.WriteFile(filepath.Join(folder, volume, strconv.Itoa(i)), nil, 0o600)
		}
		second := strings.Replace(volume, "0a1b", "ffff", 1)
		refuses(t, f, Request{Op: Make, Name: second}, "no space left")
		if err := unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Error(err)
			return
		}
		refuses(t, f, Request{Op: Make, Name: second}, "read-only")
		refuses(t, f, Request{Op: Remove, Name: volume}, "read-only")
		if err := unix.Mount("", folder, "", unix.MS_REMOUNT, ""); err != nil {
			t.Error(err)
			return
		}
		// A full disk is where removing matters most.
		testenv.Check(t, testenv.Err(f.Do(Request{Op: Remove, Name: volume})))
		testenv.Check(t, f.removeRenamed(t.Context()))
		left, err := os.ReadDir(folder)
		testenv.True(t, err == nil && !slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() != second }),
			"left: %v, %v", left, err)
	})
}
