// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestInterruptedRestore finds what a power cut leaves of a restore: nothing
// that a start could take for a store, and nothing in the way of another try.
func TestInterruptedRestore(t *testing.T) {
	s := openStore(t, Options{Dir: t.TempDir()})
	ctx := testContext(t)
	mustPut(ctx, t, s.Client().Client, "key", "value")
	var backup bytes.Buffer
	testenv.Must(s.Backup(ctx, &backup))(t)
	o := Options{Dir: filepath.Join(t.TempDir(), "store"), NodeID: "one"}
	// As far as it got: a directory with an identity, and no snapshot yet.
	half := testenv.Must(disk.Open(disk.Options{Path: o.Dir + ".restoring", Logger: testLog("half"), Clock: s.replica.opts.Clock}))(t)
	testenv.NoError(t, half.Close())
	if used, err := disk.Used(o.Dir); err != nil || used {
		t.Fatalf("%v, %v: there is a store already", used, err)
	}
	testenv.NoError(t, Restore(o, bytes.NewReader(backup.Bytes()), 0))
	testenv.Fails(t, testenv.Err(os.Stat(o.Dir+".restoring")), "what was built is still beside")
	got, err := openStore(t, o).Client().KV.Get(ctx, "key")
	testenv.Require(t, err == nil && len(got.Kvs) == 1, "%v, %v", got, err)
}

// A backup that is restored again, after the cluster has gone on from the first time, gets later revisions: those that
// clients have seen do not come again. A clock of 1970 leaves the leap from the backup's.
func TestRestoredAgain(t *testing.T) {
	s := openStore(t, Options{Dir: t.TempDir()})
	ctx := testContext(t)
	mustPut(ctx, t, s.Client().Client, "key", "value")
	var backup bytes.Buffer
	testenv.Must(s.Backup(ctx, &backup))(t)
	revision := func(at time.Time, seen int64) int64 {
		o := Options{Dir: filepath.Join(t.TempDir(), "store"), NodeID: "one", Clock: clocktesting.NewFakeClock(at)}
		testenv.NoError(t, Restore(o, bytes.NewReader(backup.Bytes()), seen))
		o.Clock = nil
		return openStore(t, o).Status().Revision
	}
	now := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	first, second, old := revision(now, 0), revision(now.Add(time.Minute), 0), revision(time.Unix(0, 0), 0)
	if first <= revisionLeap || second-first < 60*revisionsPerSecond || old <= revisionLeap || old > 2*revisionLeap {
		t.Errorf("revisions %d, a minute later %d, in 1970 %d", first, second, old)
	}
	// Where the store is known whose place it takes, the clock does not matter.
	if again := revision(time.Unix(0, 0), second); again < second+revisionLeap {
		t.Errorf("revision %d, in 1970, in place of a store at %d", again, second)
	}
}
