// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// set builds an embedded set of a program and a link to it.
func set(t *testing.T, program string) fstest.MapFS {
	t.Helper()
	const file = "lib/program"
	sum := sha256.Sum256([]byte(program))
	x := index.Index{
		{Path: "alias", Link: file},
		{Path: file, Mode: 0o555, Size: int64(len(program)), SHA256: hex.EncodeToString(sum[:])},
	}
	return fstest.MapFS{file: {Data: []byte(program)}, index.FileName: {Data: x.Encode()}}
}

func mustUnpack(t *testing.T, src fs.FS, bin string) *Dir {
	t.Helper()
	d := testenv.Must(unpack(src, bin, "/proc"))(t)
	t.Cleanup(func() { letGo(t, &d) })
	return &d
}

// unpackOwn unpacks what this tree's make embedded built.
func unpackOwn(t *testing.T) *Dir {
	t.Helper()
	d, err := Unpack(t.TempDir())
	if errors.Is(err, ErrNotEmbedded) {
		testenv.Missing(t, testenv.Embedded, "make embedded has not run in this tree")
	}
	testenv.NoError(t, err)
	t.Cleanup(func() { letGo(t, &d) })
	return &d
}

// letGo gives up the lock on a set, as the end of the process does. What was let go already is left alone: its
// descriptor may be another file's by now.
func letGo(t *testing.T, d *Dir) {
	t.Helper()
	if d.lockFD < 0 {
		return
	}
	testenv.Check(t, d.Close())
	d.lockFD = -1
}

// sets names what bin holds beside the lock and the link.
func sets(t *testing.T, bin string) (names []string) {
	t.Helper()
	entries := testenv.Must(os.ReadDir(bin))(t)
	for _, e := range entries {
		if e.Name() != lockName && e.Name() != "current" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestUnpackWritesOnce(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "data", "bin")
	d := mustUnpack(t, set(t, "one"), bin)
	for _, p := range []string{d.File("alias"), d.File("lib/program"), filepath.Join(d.Stable, "alias")} {
		testenv.Equal(t, string(testenv.Must(os.ReadFile(p))(t)), "one", "%s holds", p)
	}
	fi := testenv.Must(os.Stat(d.File("lib/program")))(t)
	testenv.Equal(t, fi.Mode().Perm(), 0o555, "mode")
	again := mustUnpack(t, set(t, "one"), bin)
	fi2, err := os.Stat(again.File("lib/program"))
	testenv.False(t, err != nil || !os.SameFile(fi, fi2) || again.Path != d.Path, "the second Unpack wrote the set again (%v)", err)
	if got := sets(t, bin); len(got) != 1 {
		t.Errorf("bin holds %v, want one set", got)
	}
}

func TestUnpackWithoutProgramsReturnsErrNotEmbedded(t *testing.T) {
	if _, err := unpack(fstest.MapFS{}, t.TempDir(), "/proc"); !errors.Is(err, ErrNotEmbedded) {
		t.Fatalf("got %v, want ErrNotEmbedded", err)
	}
}

// TestInterruptedUnpackIsRepaired: whatever an earlier process left when it was killed at some point is put right.
func TestInterruptedUnpackIsRepaired(t *testing.T) {
	src := set(t, "whole")
	for name, harm := range map[string]func(t *testing.T, d Dir) error{
		"leftover":       func(_ *testing.T, d Dir) error { return os.MkdirAll(filepath.Dir(d.Path)+"/.tmp-123/new", 0o755) },
		"file missing":   func(_ *testing.T, d Dir) error { return os.Remove(d.File("lib/program")) },
		"file truncated": func(_ *testing.T, d Dir) error { return os.Truncate(d.File("lib/program"), 2) },
		"wrong mode":     func(_ *testing.T, d Dir) error { return os.Chmod(d.File("lib/program"), 0o600) },
		"link missing":   func(_ *testing.T, d Dir) error { return os.Remove(d.File("alias")) },
		"no current":     func(_ *testing.T, d Dir) error { return os.Remove(d.Stable) },
		"set missing":    func(_ *testing.T, d Dir) error { return os.RemoveAll(d.Path) },
	} {
		t.Run(name, func(t *testing.T) {
			bin := filepath.Join(t.TempDir(), "bin")
			d := mustUnpack(t, src, bin)
			testenv.NoError(t, harm(t, *d))
			d = mustUnpack(t, src, bin)
			got, err := os.ReadFile(filepath.Join(d.Stable, "alias"))
			testenv.False(t, err != nil || string(got) != "whole", "after repair: %q, %v", got, err)
			if name == "leftover" {
				return // nothing was missing, so nothing was locked and cleared; the next version's unpacking does it
			}
			if got := sets(t, bin); len(got) != 1 {
				t.Errorf("bin holds %v, want one set", got)
			}
		})
	}
}

func TestDamagedBinaryIsNotUnpacked(t *testing.T) {
	const file = "lib/program"
	whole := set(t, "one")[file].Data
	for name, data := range map[string][]byte{
		"another bit":    bytes.Replace(whole, []byte("one"), []byte("onf"), 1),
		"another length": set(t, "three")[file].Data,
		"cut":            whole[:len(whole)-1],
		"empty":          nil,
	} {
		t.Run(name, func(t *testing.T) {
			src := set(t, "one")
			src[file] = &fstest.MapFile{Data: data}
			bin := filepath.Join(t.TempDir(), "bin")
			testenv.WantError(t, testenv.Err(unpack(src, bin, "/proc")), "install it again")
			if got := sets(t, bin); len(got) != 0 {
				t.Errorf("bin holds %v after a failure", got)
			}
		})
	}
}

func TestConcurrentUnpacksMakeOneSet(t *testing.T) {
	src, bin := set(t, "same"), filepath.Join(t.TempDir(), "bin")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			d, err := unpack(src, bin, "/proc")
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(d.File("alias")); err != nil || string(got) != "same" {
				t.Errorf("%q, %v", got, err)
			}
			letGo(t, &d)
		})
	}
	wg.Wait()
	if got := sets(t, bin); len(got) != 1 {
		t.Errorf("bin holds %v, want one set", got)
	}
}

// TestPruneKeepsSetOfLivingServer: an old set stays while a coracle that is yet to start programs from it lives.
func TestPruneKeepsSetOfLivingServer(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "bin")
	old := mustUnpack(t, set(t, "old"), bin)
	mustUnpack(t, set(t, "new"), bin)
	if got := sets(t, bin); len(got) != 2 {
		t.Fatalf("bin holds %v: the set in use has to stay", got)
	}
	letGo(t, old)
	mustUnpack(t, set(t, "new"), bin)
	if got := sets(t, bin); len(got) != 1 {
		t.Fatalf("bin holds %v: the old set is not needed", got)
	}
}

// TestPruneByProcess: an old set stays while a program runs from it.
func TestPruneByProcess(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "bin")
	old := mustUnpack(t, set(t, "old"), bin)
	letGo(t, old)
	proc := t.TempDir()
	for pid, exe := range map[string]string{"41": "/sbin/init", "42": old.File("lib/program") + " (deleted)"} {
		testenv.NoError(t, os.MkdirAll(filepath.Join(proc, pid), 0o755))
		testenv.NoError(t, os.Symlink(exe, filepath.Join(proc, pid, "exe")))
	}
	d := testenv.Must(unpack(set(t, "new"), bin, proc))(t)
	t.Cleanup(func() { letGo(t, &d) })
	if got := sets(t, bin); len(got) != 2 {
		t.Fatalf("bin holds %v: a program runs from the old set", got)
	}
	testenv.NoError(t, os.RemoveAll(filepath.Join(proc, "42")))
	testenv.NoError(t, prune(bin, filepath.Base(d.Path), proc))
	if got := sets(t, bin); len(got) != 1 || got[0] != filepath.Base(d.Path) {
		t.Errorf("bin holds %v, want the new set alone", got)
	}
}

// TestUnpackOntoFullDiskFails unpacks onto a file system of a few pages, in a mount namespace of its own.
func TestUnpackOntoFullDiskFails(t *testing.T) {
	if os.Getenv("EMBEDDED_FULL_DISK") == "" {
		testenv.RequireRoot(t, "it mounts a small file system")
		cmd := exec.Command("unshare", "--mount", os.Args[0], "-test.run=^TestUnpackOntoFullDiskFails$", "-test.v")
		cmd.Env = append(os.Environ(), "EMBEDDED_FULL_DISK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	mount := func(flags uintptr) error { return unix.Mount("small", dir, "tmpfs", flags, "size=64k") }
	testenv.NoError(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	testenv.NoError(t, mount(0))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the mount namespace ends anyway
	bin := filepath.Join(dir, "bin")
	_, err := unpack(set(t, strings.Repeat("x", 200_000)), bin, "/proc")
	testenv.Require(t, errors.Is(err, unix.ENOSPC) && strings.Contains(fmt.Sprint(err), "free some space"),
		"got %v, want a full disk with advice", err)
	if got := sets(t, bin); len(got) != 0 {
		t.Errorf("bin holds %v after a failure", got)
	}
	small := set(t, "fits")
	d := mustUnpack(t, small, bin)

	// A complete set serves from a read-only file system too.
	letGo(t, d)
	testenv.NoError(t, mount(unix.MS_REMOUNT|unix.MS_RDONLY))
	mustUnpack(t, small, bin)
	testenv.ErrorIs(t, testenv.Err(unpack(set(t, "other"), bin, "/proc")), unix.EROFS)
}

// TestEmbeddedProgramsRun checks what this tree's make embedded built, by unpacking it as a server does.
func TestEmbeddedProgramsRun(t *testing.T) {
	d := unpackOwn(t)
	for _, name := range []string{
		"runc", "coracle-helper", "containerd-shim-runc-v2", "coracle-cni", "nft", "coracle-ingress",
		"nftables/nft", "nftables/ld.so", "nftables/protocols.so",
	} {
		fi, err := os.Stat(d.File(name))
		testenv.False(t, err != nil || fi.Mode().Perm()&0o111 == 0, "%s: %v, not a program", name, err)
	}
	for _, name := range []string{"pause.tar", "nftables/COPYRIGHT", "nftables/PACKAGES"} {
		if fi, err := os.Stat(d.File(name)); err != nil || fi.Size() == 0 {
			t.Errorf("%s: %v, empty", name, err)
		}
	}
	for _, cmd := range [][]string{
		{d.File("runc"), "--version"},
		{d.File("nft"), "--version"},
		{d.File("nftables/ld.so"), "--library-path", d.File("nftables"), "--argv0", "nft", d.File("nftables/nft"), "--version"},
	} {
		out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput()
		testenv.False(t, err != nil, "%v: %v\n%s", cmd, err, out)
	}
}
