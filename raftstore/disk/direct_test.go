// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// onDevice reads a file past the page cache.
func onDevice(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Skipf("needs a file system with direct reads: %v", err)
	}
	defer f.Close()
	info := testenv.Must(f.Stat())(t)
	size := int(roundUp(info.Size(), directAlign))
	b := make([]byte, size+directAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directAlign - 1)
	n, err := f.ReadAt(b[skip:skip+size], 0)
	testenv.Require(t, int64(n) == info.Size(), "%v %v", n, err)
	return b[skip : skip+n]
}

// sizedEntry is small or, now and then, too large for a direct write, or for
// a segment.
func sizedEntry(r *rand.Rand, index uint64) *raft.Log {
	e := randomEntry(r, index)
	switch r.IntN(40) {
	case 0:
		e.Data = bytes.Repeat([]byte{byte(index)}, smallAppend+r.IntN(smallAppend))
	case 1:
		e.Data = bytes.Repeat([]byte{byte(index)}, 70<<10+r.IntN(100))
	}
	return e
}

// TestDirectAppendsMatchDisk mixes appends past the page cache with others. What is
// read through it is what was appended, at once, by others too, and what is on
// the device; also after a write that failed.
func TestDirectAppendsMatchDisk(t *testing.T) {
	r := randomOf(t)
	o := options(filepath.Join(t.TempDir(), "store")) // not in memory
	faults := &diskfaults.Faults{}
	o.Faults = faults
	var want []*raft.Log
	for range 6 {
		d := testenv.Must(Open(o))(t)
		testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
		checkEntries(t, d, want)
		stop := make(chan struct{})
		var readers sync.WaitGroup
		readers.Go(func() { // the newest, whose pages are the ones written to
			for {
				select {
				case <-stop:
					return
				default:
				}
				last, _ := d.Log.LastIndex()
				for i := last; i > 0 && i+10 > last; i-- {
					var e raft.Log
					if err := d.Log.GetLog(i, &e); err != nil {
						t.Errorf("entry %d: %v", i, err)
						return
					}
				}
			}
		})
		for range 40 {
			var batch []*raft.Log
			for range 1 + r.IntN(4) {
				batch = append(batch, sizedEntry(r, uint64(len(want)+len(batch)+1)))
			}
			fails := r.IntN(20) == 0
			if fails {
				faults.FailWrites(unix.EIO)
			}
			done := make(chan error, 1)
			go func() { done <- d.Log.StoreLogs(batch) }()
			if fails {
				wait(t, "failing", func() bool { return errors.Is(d.Admit(), ErrFailing) })
				faults.FailWrites(nil)
			}
			testenv.NoError(t, <-done)
			for _, e := range batch {
				var got raft.Log
				if err := d.Log.GetLog(e.Index, &got); err != nil || !bytes.Equal(got.Data, e.Data) {
					t.Fatalf("entry %d: %v", e.Index, err)
				}
			}
			want = append(want, batch...)
		}
		close(stop)
		readers.Wait()
		for name, cached := range readAll(t, o.Path) {
			testenv.Require(t, bytes.Equal(cached, onDevice(t, filepath.Join(o.Path, logDir, name))),
				"%s is not on the device as it is read", name)
		}
		t.Logf("%d entries, direct writes refused: %v", len(want), d.Log.direct.refused)
		if got := checkEntries(t, d, want); got != uint64(len(want)) {
			t.Fatalf("%d entries of %d", got, len(want))
		}
		closeDir(t, d)
	}
}

// TestAppendsWorkWithoutDirectWrites has no direct writes from the beginning, and from the midst
// of it on.
func TestAppendsWorkWithoutDirectWrites(t *testing.T) {
	for what, refuse := range map[string]func(t *testing.T, l *Log){
		"opening": func(t *testing.T, l *Log) {
			s := l.tail()
			if s.direct != nil {
				testenv.NoError(t, s.direct.Close())
				s.direct = nil
			}
			testenv.NoError(t, os.Rename(s.path, s.path+".away"))
			t.Cleanup(func() { testenv.NoError(t, os.Rename(s.path+".away", s.path)) })
		},
		"writing": func(t *testing.T, l *Log) {
			f, err := os.Open(l.tail().path) // so that writes fail
			testenv.NoError(t, err)
			if l.tail().direct != nil {
				err = l.tail().direct.Close()
			}
			testenv.NoError(t, err)
			l.tail().direct = f
		},
	} {
		path := filepath.Join(t.TempDir(), "store")
		r := randomOf(t)
		var want []*raft.Log
		for _, before := range []int{0, 7} {
			t.Run(what, func(t *testing.T) {
				d := mustOpen(t, path)
				defer closeDir(t, d)
				testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
				checkEntries(t, d, want)
				for i := range before + 20 {
					if i == before {
						refuse(t, d.Log)
					}
					e := randomEntry(r, uint64(len(want)+1))
					e.Data = e.Data[:min(len(e.Data), 700)] // the segment does not end
					want = append(want, e)
					testenv.NoError(t, d.Log.StoreLog(e))
					if d.Log.direct.refused != (i >= before) && !t.Failed() {
						t.Errorf("append %d: refused: %v", i, d.Log.direct.refused)
					}
				}
				checkEntries(t, d, want)
				testenv.Check(t, d.Admit())
			})
		}
		d := mustOpen(t, path)
		if got := checkEntries(t, d, want); got != uint64(len(want)) {
			t.Errorf("%s: %d entries of %d", what, got, len(want))
		}
		closeDir(t, d)
	}
}

// TestDirectAppendsFitLargeSectors has a device whose sectors are 4 KiB.
func TestDirectAppendsFitLargeSectors(t *testing.T) {
	root := t.TempDir()
	file, dir := filepath.Join(root, "image"), filepath.Join(root, "mnt")
	testenv.NoError(t, errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600), os.Truncate(file, 64<<20)))
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			testenv.Missing(t, testenv.LoopDevice, "%s: %v: %s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	device := run("losetup", "--find", "--show", "--sector-size", "4096", file)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	run("mkfs.ext4", "-q", device)
	run("mount", device, dir)
	t.Cleanup(func() { testenv.Check(t, unix.Unmount(dir, 0)) })
	r := randomOf(t)
	path := filepath.Join(dir, "store")
	var want []*raft.Log
	for range 3 {
		d := mustOpen(t, path)
		testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
		for range 30 {
			e := sizedEntry(r, uint64(len(want)+1))
			want = append(want, e)
			testenv.NoError(t, d.Log.StoreLog(e))
		}
		testenv.True(t, d.Log.direct.refused, "the device took sectors of 512 bytes")
		testenv.Check(t, d.Admit())
		if got := checkEntries(t, d, want); got != uint64(len(want)) {
			t.Fatalf("%d entries of %d", got, len(want))
		}
		closeDir(t, d)
	}
}
