// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		testenv.Missing(t, testenv.Root, "it mounts a file system: %v", err)
	}
	t.Cleanup(func() { testenv.Check(t, unix.Unmount(path, 0)) })
	return path
}

// fillUp takes all the space that is left and returns how to give it back.
func fillUp(t *testing.T, path string) (free func()) {
	t.Helper()
	name := filepath.Join(path, "filler")
	f := testenv.Must(os.Create(name))(t)
	for size := int64(1 << 20); size >= 4096; {
		info := testenv.Must(f.Stat())(t)
		if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), size); err != nil {
			size /= 2
		}
	}
	testenv.NoError(t, f.Close())
	return func() {
		testenv.NoError(t, os.Remove(name))
	}
}

// wait waits for what the free space brings about, at which a stream of writes
// looks only now and then.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(checkEvery / 4) {
		testenv.Require(t, !time.Now().After(deadline), "never %s", what)
	}
}

func TestFullDiskStaysReadable(t *testing.T) {
	path := smallDisk(t, "size=16m")
	o := options(filepath.Join(path, "store"))
	o.Reserve, o.SegmentSize = 4<<20, 1<<20
	d := testenv.Must(Open(o))(t)
	testenv.NoError(t, d.Admit())
	free := fillUp(t, path)
	big := func(i uint64) *raft.Log {
		return &raft.Log{Index: i, Term: 1, Data: bytes.Repeat([]byte("x"), 300<<10)}
	}

	// What is under way still gets to the disk, thanks to the reserve.
	testenv.NoError(t, d.Log.StoreLog(big(1)))
	testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
	wait(t, "refused", func() bool { return errors.Is(d.Admit(), ErrNoSpace) })
	// Without any space at all a write waits, and reads go on.
	last := uint64(1)
	done := make(chan error, 1)
	for blocked := false; !blocked; {
		go func() { done <- d.Log.StoreLog(big(last + 1)) }()
		select {
		case err := <-done:
			testenv.NoError(t, err)
			last++
		case <-time.After(2 * time.Second):
			blocked = true
		}
	}
	var l raft.Log
	if err := d.Log.GetLog(1, &l); err != nil || !bytes.Equal(l.Data, big(1).Data) {
		t.Fatalf("read on a full disk: %v", err)
	}
	free()
	testenv.NoError(t, <-done)
	wait(t, "admitted again", func() bool { return d.Admit() == nil })
	if info, err := os.Stat(filepath.Join(o.Path, reserveFile)); err != nil || info.Size() != o.Reserve {
		t.Fatalf("no new reserve: %v, %v", info, err)
	}
	testenv.NoError(t, d.Close())
	d = mustOpen(t, o.Path)
	defer closeDir(t, d)
	if got, err := d.Log.LastIndex(); err != nil || got != last+1 {
		t.Fatalf("last entry %d, want %d, %v", got, last+1, err)
	}
}
