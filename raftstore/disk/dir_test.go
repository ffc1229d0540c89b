// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

var testIdentity = Identity{Cluster: "c", Node: "n", Member: "n"}

func options(path string) Options {
	return Options{Path: path, Identity: testIdentity, Logger: slog.New(slog.DiscardHandler), Clock: clock.RealClock{}, Reserve: 4096, SegmentSize: 64 << 10}
}

func mustOpen(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(options(path))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func entry(i uint64) *raft.Log {
	// Sizes below, around and above a page.
	return &raft.Log{Index: i, Term: 3, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, int(i*i*7)%9000)}
}

const (
	firstEntry = 40
	lastEntry  = 120
)

// filled makes a directory with a snapshot, a log that joins it, and raft's
// variables, written in several transactions as in life.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(memoryDir(t), "store")
	d := mustOpen(t, path)
	for i := uint64(1); i <= lastEntry; i++ {
		if err := d.Log.StoreLogs([]*raft.Log{entry(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		d.Vars.SetUint64([]byte("CurrentTerm"), 3),
		d.Vars.SetUint64([]byte("LastVoteTerm"), 3),
		d.Vars.Set([]byte("LastVoteCand"), []byte("n")),
		writeSnapshot(d.Snapshots, firstEntry+1, strings.Repeat("state ", 5000)),
		d.Log.DeleteRange(1, firstEntry-1),
		d.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func writeSnapshot(s *Snapshots, index uint64, state string) error {
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n", Address: "n"}}}
	sink, err := s.Create(1, index, 3, servers, 1, nil)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(sink, state); err != nil {
		return err
	}
	return sink.Close()
}

// content reads all that a directory holds, as text.
func content(d *Dir) (string, error) {
	var out strings.Builder
	for i := uint64(firstEntry); i <= lastEntry; i++ {
		var l raft.Log
		if err := d.Log.GetLog(i, &l); err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%d %d %d %x\n", l.Index, l.Term, l.Type, l.Data)
	}
	for _, name := range []string{"CurrentTerm", "LastVoteTerm", "LastVoteCand"} {
		v, err := d.Vars.Get([]byte(name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%s %x\n", name, v)
	}
	list, err := d.Snapshots.List()
	if err != nil {
		return "", err
	}
	for _, meta := range list {
		_, r, err := d.Snapshots.Open(meta.ID)
		if err != nil {
			return "", err
		}
		state, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return "", err
		}
		fmt.Fprintln(&out, *meta, string(state))
	}
	return out.String(), nil
}

func TestReopen(t *testing.T) {
	path := filled(t)
	d := mustOpen(t, path)
	defer closeDir(t, d)
	first, err := d.Log.FirstIndex()
	if err != nil || first > firstEntry || first == 1 { // whole segments are removed
		t.Fatalf("first index %d, %v", first, err)
	}
	var l raft.Log
	if err := d.Log.GetLog(77, &l); err != nil || !bytes.Equal(l.Data, entry(77).Data) || l.Term != 3 {
		t.Fatalf("entry 77: %v, %v", l, err)
	}
	if err := d.Log.GetLog(lastEntry+1, &l); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("an entry that is not there: %v", err)
	}
}

// dataFiles are those whose damage must be noticed.
func dataFiles(t *testing.T, path string) []string {
	t.Helper()
	names := []string{identityFile, varsFile}
	snapshots, err := filepath.Glob(filepath.Join(path, snapshotsDir, "*"))
	if err != nil || len(snapshots) != 1 {
		t.Fatalf("snapshots: %v, %v", snapshots, err)
	}
	names = append(names, filepath.Join(snapshotsDir, filepath.Base(snapshots[0])))
	segments, err := filepath.Glob(filepath.Join(path, logDir, "*"))
	if err != nil || len(segments) < 3 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	for _, s := range []string{segments[0], segments[len(segments)/2], segments[len(segments)-1]} {
		names = append(names, filepath.Join(logDir, filepath.Base(s)))
	}
	return names
}

// damage copies a directory, changes one file of the copy, and opens it. The
// open must be refused with an error that names the file, leaving everything
// as it was, or the content must be what was written. Panics fail the test by
// themselves.
func damage(t *testing.T, scratch, path, name, what string, want string, change func([]byte) []byte) {
	t.Helper()
	copied := filepath.Join(scratch, "copy")
	if err := os.CopyFS(copied, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(copied, name)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := change(bytes.Clone(before))
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(options(copied))
	if err == nil {
		got, err := content(d)
		if err != nil || got != want {
			t.Errorf("%s, %s: opened, but the content is not what was written (%v)", name, what, err)
		}
		if err := errors.Join(d.Close(), os.RemoveAll(copied)); err != nil {
			t.Error(err)
		}
		return
	}
	var damage *DamageError
	var format *FormatError // a flipped digit may look like a newer version
	var mismatch *MismatchError
	switch {
	case errors.As(err, &damage) && strings.HasPrefix(damage.Path, filepath.Dir(file)):
		// A file that misses something may be told from its neighbour only.
	case errors.As(err, &format), errors.As(err, &mismatch):
	default:
		t.Errorf("%s, %s: the error does not name the file: %v", name, what, err)
	}
	after, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(after, changed) {
		t.Errorf("%s, %s: the refused open changed the file (%v)", name, what, err)
	}
	if err := os.RemoveAll(copied); err != nil {
		t.Fatal(err)
	}
}

// memoryDir is a directory in memory where there is such a thing: a thousand
// opens would otherwise wait for as many flushes.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "store")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestFlippedBits(t *testing.T) {
	path := filled(t)
	d := mustOpen(t, path)
	want, err := content(d)
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	scratch, seed := memoryDir(t), rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, name := range dataFiles(t, path) {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		size := int(info.Size())
		var offsets []int
		for i := range min(size, 72) {
			offsets = append(offsets, i, size-1-i) // both ends closely
		}
		for range 25 { // and anywhere, page headers most of all
			at := random.IntN(size)
			offsets = append(offsets, at, at&^4095+random.IntN(min(64, size-at&^4095)))
		}
		for _, at := range offsets {
			bit := byte(1) << random.IntN(8)
			damage(t, scratch, path, name, fmt.Sprintf("bit %#x of byte %d flipped", bit, at), want, func(b []byte) []byte {
				b[at] ^= bit
				return b
			})
		}
	}
}

func TestTruncatedFiles(t *testing.T) {
	scratch, path := memoryDir(t), filled(t)
	d := mustOpen(t, path)
	want, err := content(d)
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	for _, name := range dataFiles(t, path) {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		size := int(info.Size())
		for _, keep := range []int{0, 1, 80, 4096, 12000, size / 2, size - 1} {
			if keep < 0 || keep >= size {
				continue
			}
			damage(t, scratch, path, name, fmt.Sprintf("cut to %d of %d bytes", keep, size), want, func(b []byte) []byte { return b[:keep] })
		}
	}
}

func TestMissingFiles(t *testing.T) {
	for i := range dataFiles(t, filled(t)) {
		path := filled(t)
		name := dataFiles(t, path)[i]
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
		var damage *DamageError
		if _, err := Open(options(path)); !errors.As(err, &damage) || !strings.HasPrefix(damage.Path, path) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// TestInterruptedCreation loses each file that a first start had not yet made.
func TestInterruptedCreation(t *testing.T) {
	for _, lost := range [][]string{
		{identityFile},
		{identityFile, varsFile},
		{identityFile, logDir},
		{identityFile, filepath.Join(logDir, "0000000000000001.segment")},
	} {
		path := filepath.Join(t.TempDir(), "store")
		if err := mustOpen(t, path).Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range lost {
			if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := mustOpen(t, path).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusedDirectories(t *testing.T) {
	t.Run("newer format", func(t *testing.T) {
		path := filled(t)
		text := "coracle store\nformat 3\nsomething new\n"
		if err := os.WriteFile(filepath.Join(path, identityFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var format *FormatError
		if _, err := Open(options(path)); !errors.As(err, &format) || format.Version != 3 {
			t.Error(err)
		}
	})
	t.Run("another cluster", func(t *testing.T) {
		o := options(filled(t))
		o.Identity.Cluster = "other"
		var mismatch *MismatchError
		if _, err := Open(o); !errors.As(err, &mismatch) || mismatch.Has != "c" || mismatch.Want != "other" {
			t.Error(err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		path := filled(t)
		d := mustOpen(t, path)
		defer closeDir(t, d)
		var used *InUseError
		if _, err := Open(options(path)); !errors.As(err, &used) || used.PID != os.Getpid() {
			t.Error(err)
		}
	})
	t.Run("not writable", func(t *testing.T) {
		path := t.TempDir()
		if os.Geteuid() == 0 {
			readOnlyMount(t, path)
		} else if err := os.Chmod(path, 0o500); err != nil {
			t.Fatal(err)
		}
		_, err := Open(options(path))
		if err == nil || !strings.Contains(err.Error(), "cannot be written") || !strings.Contains(err.Error(), path) {
			t.Error(err)
		}
	})
}

func readOnlyMount(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestSnapshotIsReplaced(t *testing.T) {
	d := mustOpen(t, filepath.Join(t.TempDir(), "store"))
	defer closeDir(t, d)
	for i, state := range []string{"one", "two", ""} {
		if err := writeSnapshot(d.Snapshots, uint64(i+1), state); err != nil {
			t.Fatal(err)
		}
		list, err := d.Snapshots.List()
		if err != nil || len(list) != 1 || list[0].Index != uint64(i+1) || list[0].Size != int64(len(state)) {
			t.Fatalf("%v, %v", list, err)
		}
		_, r, err := d.Snapshots.Open(list[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || string(got) != state {
			t.Fatalf("%q, %v", got, err)
		}
	}
	files, err := os.ReadDir(d.Snapshots.dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
}
