// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// onFakeDisk opens a new directory whose clock and disk the test controls.
func onFakeDisk(t *testing.T) (*Dir, *clocktesting.FakeClock, *diskfaults.Faults, func() []time.Duration) {
	t.Helper()
	c, faults, flushes := clocktesting.NewFakeClock(time.Unix(1e9, 0)), &diskfaults.Faults{}, make(chan time.Duration, 100)
	o := options(filepath.Join(memoryDir(t), "store"))
	o.Clock, o.Faults = c, faults
	o.Flushed = func(took time.Duration, bytes int) {
		testenv.True(t, bytes > 0, "an append of %d bytes", bytes)
		flushes <- took
	}
	d := testenv.Must(Open(o))(t)
	t.Cleanup(func() { closeDir(t, d) })
	return d, c, faults, func() []time.Duration {
		var all []time.Duration
		for len(flushes) > 0 {
			all = append(all, <-flushes)
		}
		return all
	}
}

func TestStalledWriteIsMeasured(t *testing.T) {
	writes := map[string]func(d *Dir) error{
		"log":       func(d *Dir) error { return d.Log.StoreLog(&raft.Log{Index: 1, Term: 1}) },
		"log's end": func(d *Dir) error { return d.Log.DeleteRange(1, 2) },
		"variables": func(d *Dir) error { return d.Vars.SetUint64([]byte("CurrentTerm"), 1) },
	}
	for name, write := range writes {
		t.Run(name, func(t *testing.T) {
			d, c, faults, flushed := onFakeDisk(t)
			if name == "log's end" {
				testenv.NoError(t, d.Log.StoreLogs([]*raft.Log{{Index: 1, Term: 1}, {Index: 2, Term: 1}, {Index: 3, Term: 1}}))
				write = func(d *Dir) error { return d.Log.DeleteRange(2, 3) }
			}
			flushed()
			c.Step(time.Hour)
			if got := d.Stalled(); got != 0 {
				t.Fatalf("idle, and stalled for %v", got)
			}
			faults.DelayFlushes(5 * time.Second)
			done := make(chan error, 1)
			go func() { done <- write(d) }()
			wait(t, "delayed", c.HasWaiters)
			c.Step(3 * time.Second)
			testenv.Equal(t, d.Stalled(), 3*time.Second, "stalled for")
			c.Step(2 * time.Second)
			testenv.NoError(t, <-done)
			testenv.Equal(t, d.Stalled(), 0, "afterwards stalled for")
			if took := flushed(); name != "variables" && (len(took) != 1 || took[0] != 5*time.Second) {
				t.Errorf("flushes took %v", took)
			}
		})
	}
}

// How long a flush takes is asked of a disk that has written nothing for long: it flushes a few bytes then, and the
// lock file stays what it was.
func TestIdleDisksFlushDurationIsMeasured(t *testing.T) {
	d, c, faults, _ := onFakeDisk(t)
	before := testenv.Must(os.ReadFile(filepath.Join(d.path, "LOCK")))(t)
	c.Step(time.Hour)
	if took, ok := d.FlushedWithin(time.Minute); ok {
		t.Errorf("a flush of %v, although there was none for an hour", took)
	}
	faults.DelayFlushes(5 * time.Second)
	done := make(chan error, 1)
	go func() { done <- d.Flush() }()
	wait(t, "delayed", c.HasWaiters)
	if took, ok := d.FlushedWithin(time.Minute); ok || d.Stalled() != 0 {
		t.Errorf("a flush of %v that has not ended, stalled for %v", took, d.Stalled())
	}
	c.Step(5 * time.Second)
	testenv.NoError(t, <-done)
	took, ok := d.FlushedWithin(5 * time.Second)
	if _, since := d.FlushedWithin(4 * time.Second); !ok || took != 5*time.Second || since {
		t.Errorf("a flush of %v; it began within 5 s: %v, within 4 s: %v", took, ok, since)
	}
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(d.path, "LOCK")))(t)), string(before), "the lock file was %q and is", before)
	faults.DelayFlushes(0)
	faults.FailWrites(unix.EIO)
	testenv.Fails(t, d.Flush(), "a flush that failed is reported as done")
}

// TestFailedWritesCountAsStalled lets a disk return errors: writes are retried and count as
// stalled, new ones are refused, and all is well when the disk is.
func TestFailedWritesCountAsStalled(t *testing.T) {
	for errno, refusal := range map[error]error{unix.EIO: ErrFailing, unix.ENOSPC: ErrNoSpace} {
		t.Run(errno.Error(), func(t *testing.T) {
			d, c, faults, _ := onFakeDisk(t)
			faults.FailWrites(errno)
			done := make(chan error, 2)
			go func() { done <- d.Log.StoreLog(&raft.Log{Index: 1, Term: 1}) }()
			wait(t, "retried", c.HasWaiters)
			go func() { done <- d.Vars.SetUint64([]byte("CurrentTerm"), 1) }()
			wait(t, "under way", func() bool { return d.stall.vars.Load() != 0 })
			c.Step(retryEvery)
			wait(t, "retried", c.HasWaiters)
			testenv.Equal(t, d.Stalled(), retryEvery, "stalled for")
			testenv.ErrorIs(t, writeSnapshot(d, 1, "state"), errno, "a snapshot")
			testenv.ErrorIs(t, d.Admit(), refusal, "new writes")
			faults.FailWrites(nil)
			var err error
			for left := 2; left > 0; {
				select {
				case e := <-done:
					err, left = errors.Join(err, e), left-1
				case <-time.After(time.Millisecond):
					c.Step(retryEvery) // whichever of them waits
				}
			}
			testenv.NoError(t, err)
			wait(t, "admitted", func() bool { c.Step(checkEvery); return d.Admit() == nil })
		})
	}
}

// TestFaultsEndAtOnce lets a delay go before its time.
func TestFaultsEndAtOnce(t *testing.T) {
	d, c, faults, _ := onFakeDisk(t)
	for i, end := range []func(){func() { faults.DelayFlushes(0) }, d.Abort} {
		faults.DelayFlushes(time.Hour)
		done := make(chan error, 1)
		go func() { done <- d.Log.StoreLog(&raft.Log{Index: uint64(i + 1), Term: 1}) }()
		wait(t, "delayed", c.HasWaiters)
		end()
		testenv.NoError(t, <-done)
	}
}

// How long a write takes is the longest of the last ten seconds or twenty in which there were any.
func TestFlushDurationIsRecentMaximum(t *testing.T) {
	d, c, _, _ := onFakeDisk(t)
	s := d.stall
	expect := func(want time.Duration) {
		t.Helper()
		testenv.Equal(t, d.FlushDuration(), want, "a write takes")
	}
	c.Step(time.Minute)
	s.noteFlush(300 * time.Millisecond)
	s.noteFlush(time.Millisecond)
	expect(300 * time.Millisecond)
	c.Step(time.Hour) // nothing is learnt, and nothing forgotten
	expect(300 * time.Millisecond)
	s.noteFlush(2 * time.Millisecond)
	expect(300 * time.Millisecond)
	c.Step(flushWindow + time.Second)
	s.noteFlush(3 * time.Millisecond)
	expect(3 * time.Millisecond)
	testenv.NoError(t, d.Log.StoreLog(&raft.Log{Index: 1, Term: 1})) // in no time, by this clock
	expect(3 * time.Millisecond)
}
