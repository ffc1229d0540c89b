// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// longLog opens a directory whose log has at least four segments, and returns
// the index of its last entry.
func longLog(t *testing.T, path string) (*Dir, uint64) {
	t.Helper()
	d := mustOpen(t, path)
	testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
	t.Cleanup(func() { d.Close() })
	data := make([]byte, 10<<10)
	const count = 40
	for i := uint64(1); i <= count; i++ {
		testenv.NoError(t, d.Log.StoreLog(&raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: data}))
	}
	return d, count
}

func segmentsOf(t *testing.T, path string) []uint64 {
	t.Helper()
	return testenv.Must(segmentNumbers(filepath.Join(path, logDir)))(t)
}

// TestAppendsGoOnWhileFilesAreRemoved: the removal of old entries is held up,
// and an append is not.
func TestAppendsGoOnWhileFilesAreRemoved(t *testing.T) {
	path := t.TempDir()
	d, last := longLog(t, path)
	reached, let := make(chan struct{}, 100), make(chan struct{}) // more than there are files
	d.Log.unlink = func(path string) error {
		reached <- struct{}{}
		<-let
		return os.Remove(path)
	}
	removed := make(chan error, 1)
	go func() { removed <- d.Log.DeleteRange(1, last-1) }()
	select {
	case <-reached:
	case err := <-removed:
		t.Fatalf("nothing was removed, of segments %v: %v", segmentsOf(t, path), err)
	}
	stored := make(chan error, 1)
	go func() {
		stored <- errors.Join(
			d.Log.StoreLog(&raft.Log{Index: last + 1, Term: 1, Type: raft.LogCommand}),
			// Another removal leaves the files to the first one.
			d.Log.DeleteRange(last, last),
			d.Log.StoreLog(&raft.Log{Index: last + 2, Term: 1, Type: raft.LogCommand}),
		)
	}()
	select {
	case err := <-stored:
		testenv.NoError(t, err)
	case <-time.After(2 * time.Minute):
		t.Fatal("an append waits for the removal of old files")
	}
	testenv.Equal(t, d.Stalled(), 0, "the disk counts as stalled for")
	if n := len(segmentsOf(t, path)); n < 4 {
		t.Fatalf("%d segments: the test shows nothing", n)
	}
	close(let)
	testenv.NoError(t, <-removed)
	if left := segmentsOf(t, path); len(left) != 1 {
		t.Errorf("files %v are left", left)
	}
}

// TestRemovalKeepsItsOrder: a file that cannot be removed stays, and so do all
// after it, until the next removal: a gap between files would count as damage.
func TestRemovalKeepsItsOrder(t *testing.T) {
	path := t.TempDir()
	d, last := longLog(t, path)
	before := segmentsOf(t, path)
	failing := errors.New("failing")
	d.Log.unlink = func(p string) error {
		if p == segmentPath(filepath.Join(path, logDir), before[1]) {
			return failing
		}
		return os.Remove(p)
	}
	testenv.ErrorIs(t, d.Log.DeleteRange(1, last-1), failing, "the error is lost")
	if left := segmentsOf(t, path); !slices.Equal(left, before[1:]) {
		t.Errorf("files %v are left of %v", left, before)
	}
	d.Log.unlink = os.Remove
	testenv.NoError(t, d.Log.StoreLog(&raft.Log{Index: last + 1, Term: 1, Type: raft.LogCommand}))
	testenv.NoError(t, d.Log.DeleteRange(last, last))
	if left := segmentsOf(t, path); len(left) != 1 {
		t.Errorf("files %v are left", left)
	}
}

// TestFailedRemovalFailsNothingElse: what was stored, or cut off at the log's end, is so although a file could not be
// removed. With another answer, raft would go by another end than the log has.
func TestFailedRemovalFailsNothingElse(t *testing.T) {
	path := t.TempDir()
	d, last := longLog(t, path)
	unlinks := 0
	d.Log.unlink = func(string) error {
		unlinks++
		return errors.New("failing")
	}
	testenv.Fails(t, d.Log.DeleteRange(1, last-15), "a compaction whose files are left says nothing")
	testenv.Check(t, d.Log.DeleteRange(last-9, last), "cut off the end")
	if now, _ := d.Log.LastIndex(); now != last-10 {
		t.Errorf("the log ends at %d", now)
	}
	testenv.NoError(t, writeSnapshotOf(d, last+10, 1, ""))
	testenv.Check(t, d.Log.StoreLog(&raft.Log{Index: last + 11, Term: 1, Type: raft.LogCommand}), "append after a snapshot")
	if now, _ := d.Log.LastIndex(); now != last+11 || unlinks < 3 {
		t.Errorf("the log ends at %d, after %d removals that failed", now, unlinks)
	}
}
