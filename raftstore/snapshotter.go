// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// minLogBytes is how much log is worth a snapshot at least. Replaying it
	// takes a fraction of a second, although it may be packed to a quarter.
	minLogBytes = 16 << 20
	// trailingLogs is how many entries a snapshot leaves in the log at least.
	// With one voter nobody needs them.
	trailingLogs = 128
	// trailingBytes is how much a snapshot leaves in the log where there are
	// other servers: one that was away for a moment gets that instead of a
	// whole snapshot.
	trailingBytes = 16 << 20
	// snapshotRetry is how long to wait after a snapshot failed; twice as long
	// each time, up to snapshotPatience. Right after a start raft refuses one
	// until it has seen the last change of members applied.
	snapshotRetry    = time.Second
	snapshotPatience = time.Minute
)

// snapshotter bounds the log. It counts bytes, not entries as raft would, for
// an entry holds anything from one small write to hundreds. It sleeps unless
// the log grows.
type snapshotter struct {
	s    *Store
	wake chan struct{} // capacity 1: look again
	// appended counts bytes since the start. At due it is time to look.
	appended, due atomic.Int64
}

func newSnapshotter(s *Store) *snapshotter {
	sn := &snapshotter{s: s, wake: make(chan struct{}, 1)}
	sn.due.Store(minLogBytes)
	return sn
}

// grown is called after each append.
func (sn *snapshotter) grown(total int64) {
	sn.appended.Store(total)
	if total < sn.due.Load() {
		return
	}
	select {
	case sn.wake <- struct{}{}:
	default:
	}
}

// run takes snapshots when they are due, until ctx is done.
func (sn *snapshotter) run(ctx context.Context) {
	var last int64 // what was appended when the last one was taken
	packed := 1.0  // what is left of a byte of the state in a snapshot
	for {
		select {
		case <-ctx.Done():
			return
		case <-sn.wake:
		}
		now, stats := sn.appended.Load(), sn.s.fsm.view().Stats()
		wait := worthSnapshot(stats, packed)
		if now >= last+wait {
			if err := sn.take(ctx); err != nil {
				return
			}
			last = now
			if size, _ := sn.s.dir.Snapshots.Newest(); size > 0 {
				packed = min(1, float64(size)/float64(stats.TotalBytes+1))
			}
		}
		sn.due.Store(last + wait)
	}
}

// worthSnapshot is how many bytes the log may grow between snapshots. A
// snapshot writes the keys and the history; it should never cost more than the
// log that it replaces, and half of that where it is mostly keys.
func worthSnapshot(st mvcc.Stats, packed float64) int64 {
	return max(minLogBytes, int64(packed*float64(max(2*st.LiveBytes, st.TotalBytes))))
}

// take takes a snapshot, however often it has to try. It returns ctx's error.
func (sn *snapshotter) take(ctx context.Context) error {
	for retry := snapshotRetry; ; retry = min(2*retry, snapshotPatience) {
		sn.trail()
		err := sn.s.raft.Snapshot().Error()
		if err == nil || errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sn.s.log.Warn("could not take a snapshot of the store; the log grows meanwhile", "retry", retry, "err", err)
		timer := sn.s.opts.Clock.NewTimer(retry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C():
		}
	}
}

// trail tells raft how many entries to leave in the log.
func (sn *snapshotter) trail() {
	if sn.s.peers == nil {
		return
	}
	conf := sn.s.raft.ReloadableConfig()
	conf.TrailingLogs = max(trailingLogs, sn.s.dir.Log.EntriesWithin(trailingBytes))
	if err := sn.s.raft.ReloadConfig(conf); err != nil {
		sn.s.log.Warn("could not change how much of the log a snapshot leaves", "err", err)
	}
}
