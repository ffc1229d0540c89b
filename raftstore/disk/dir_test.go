// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var testIdentity = Identity{Cluster: "c", Node: "n", Member: "n"}

func options(path string) Options {
	return Options{Path: path, Identity: testIdentity, Logger: slog.New(slog.DiscardHandler), Clock: clock.RealClock{}, Reserve: 4096,
		SegmentSize: 64 << 10, Newest: 1}
}

func mustOpen(t *testing.T, path string) *Dir {
	t.Helper()
	return testenv.Must(Open(options(path)))(t)
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	testenv.Check(t, d.Close())
}

func entry(i uint64) *raft.Log {
	// Sizes below, around and above a page.
	return &raft.Log{Index: i, Term: 3, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, int(i*i*7)%9000)}
}

const (
	firstEntry = 40
	lastEntry  = 120
)

// filled makes a directory with a snapshot, a log that follows it, and raft's
// variables, written in several transactions as in life.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(memoryDir(t), "store")
	d := mustOpen(t, path)
	for i := uint64(1); i <= lastEntry; i++ {
		testenv.NoError(t, d.Log.StoreLogs([]*raft.Log{entry(i)}))
	}
	for _, err := range []error{
		d.Vars.SetUint64([]byte("CurrentTerm"), 3),
		d.Vars.SetUint64([]byte("LastVoteTerm"), 3),
		d.Vars.Set([]byte("LastVoteCand"), []byte("n")),
		writeSnapshot(d, firstEntry+1, strings.Repeat("state ", 5000)),
		d.Log.DeleteRange(1, firstEntry-1),
		d.Close(),
	} {
		testenv.NoError(t, err)
	}
	return path
}

func writeSnapshot(d *Dir, index uint64, state string) error {
	return writeSnapshotOf(d, index, 3, state)
}

// writeSnapshotOf writes a snapshot and says, as a state machine would, that it is
// installed.
func writeSnapshotOf(d *Dir, index, term uint64, state string) error {
	servers := raft.Configuration{Servers: []raft.Server{{ID: "n", Address: "n"}}}
	sink, err := d.Snapshots.Create(1, index, term, servers, 1, nil)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(sink, state); err != nil {
		return err
	}
	if err := sink.Close(); err != nil {
		return err
	}
	return d.Installed()
}

func TestReopenedDirectoryHasItsEntries(t *testing.T) {
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

// TestInterruptedFirstStartIsRepeated loses each file that a first start had not yet made.
func TestInterruptedFirstStartIsRepeated(t *testing.T) {
	for _, lost := range [][]string{
		{identityFile},
		{identityFile, varsFile},
		{identityFile, logDir},
		{identityFile, filepath.Join(logDir, "0000000000000001.segment")},
	} {
		path := filepath.Join(t.TempDir(), "store")
		testenv.NoError(t, mustOpen(t, path).Close())
		for _, name := range lost {
			testenv.NoError(t, os.RemoveAll(filepath.Join(path, name)))
		}
		testenv.NoError(t, mustOpen(t, path).Close())
	}
}

func TestUnsuitableDirectoriesAreRefused(t *testing.T) {
	t.Run("newer format", func(t *testing.T) {
		path := filled(t)
		text := "coracle store\nformat 3\nsomething new\n"
		testenv.NoError(t, os.WriteFile(filepath.Join(path, identityFile), []byte(text), 0o600))
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
		testenv.WantError(t, err, "cannot be written", path)
	})
}

func readOnlyMount(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		testenv.Missing(t, testenv.Root, "it mounts a file system: %v", err)
	}
	t.Cleanup(func() { testenv.Check(t, unix.Unmount(path, 0)) })
}

func TestSnapshotIsReplaced(t *testing.T) {
	d := mustOpen(t, filepath.Join(t.TempDir(), "store"))
	defer closeDir(t, d)
	for i, state := range []string{"one", "two", ""} {
		testenv.NoError(t, writeSnapshot(d, uint64(i+1), state))
		list, err := d.Snapshots.List()
		testenv.Require(t, err == nil && len(list) == 1 && list[0].Index == uint64(i+1) && list[0].Size == int64(len(state)),
			"%v, %v", list, err)
		_, r, err := d.Snapshots.Open(list[0].ID)
		testenv.NoError(t, err)
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || string(got) != state {
			t.Fatalf("%q, %v", got, err)
		}
	}
	files, err := os.ReadDir(d.Snapshots.dir)
	testenv.Require(t, err == nil && len(files) == 1, "%v, %v", files, err)
}

// TestRaftsSnapshotVersion holds what is stored to a number that the library still reads.
func TestRaftsSnapshotVersion(t *testing.T) {
	testenv.True(t, raft.SnapshotVersionMin <= SnapshotVersion && SnapshotVersion <= raft.SnapshotVersionMax,
		"the library reads versions %d to %d", raft.SnapshotVersionMin, raft.SnapshotVersionMax)
	testenv.Equal(t, SnapshotVersion, 1, "the version at level 1 is")
}
