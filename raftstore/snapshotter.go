// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// minLogBytes is by how many bytes the log has to grow before a snapshot is worthwhile. Replaying them takes a
	// fraction of a second, although the log may be packed to a quarter.
	minLogBytes = 16 << 20
	// trailingLogs is the least number of entries that stay in the log although a snapshot covers them. With one voter
	// they are not needed.
	trailingLogs = 128
	// trailingBytes is how many bytes of entries stay in the log although a snapshot covers them, where there are other
	// servers. A server that was down for a moment gets these instead of a whole snapshot.
	trailingBytes = 16 << 20
	// snapshotRetry is how long to wait after a snapshot failed. The wait doubles each time, up to maxSnapshotRetry.
	// Right after a start raft refuses a snapshot until it has seen the last change of members applied.
	snapshotRetry    = time.Second
	maxSnapshotRetry = time.Minute
)

// snapshotter bounds the log. It counts bytes, while raft would count entries: an entry holds anything from one small
// write to hundreds. It sleeps unless the log grows.
type snapshotter struct {
	*replica
	wake timers.Signal // sent when a snapshot may be due
	// writing is held while a snapshot is written, hence its capacity of 1.
	writing chan struct{}
	// appended counts the bytes appended since the start. When it reaches nextAt, run checks whether to take a
	// snapshot.
	appended, nextAt atomic.Int64
}

func newSnapshotter(r *replica) *snapshotter {
	sn := &snapshotter{replica: r, wake: timers.NewSignal(), writing: make(chan struct{}, 1)}
	sn.nextAt.Store(minLogBytes)
	return sn
}

// grown is called after each append.
func (sn *snapshotter) grown(total int64) {
	sn.appended.Store(total)
	if total < sn.nextAt.Load() {
		return
	}
	sn.wake.Send()
}

// run takes snapshots when they are due, until ctx is done.
func (sn *snapshotter) run(ctx context.Context) {
	var last int64 // the value of appended when the last snapshot was taken
	packed := 1.0  // the bytes of the last snapshot per byte of the state
	for {
		select {
		case <-ctx.Done():
			return
		case <-sn.wake:
		}
		now, stats := sn.appended.Load(), sn.fsm.view().Stats()
		wait := snapshotThreshold(stats, packed)
		if now >= last+wait {
			if err := sn.snapshotUntilDone(ctx); err != nil {
				return
			}
			last = now
			if size, _ := sn.dir.Snapshots.Newest(); size > 0 {
				packed = min(1, float64(size)/float64(stats.TotalBytes+1))
			}
		}
		sn.nextAt.Store(last + wait)
	}
}

// snapshotThreshold returns how many bytes the log may grow between snapshots. A snapshot writes the keys and the
// history. It should never cost more than the log that it replaces, and only half of that if it is mostly keys.
func snapshotThreshold(st mvcc.Stats, packed float64) int64 {
	return max(minLogBytes, int64(packed*float64(max(2*st.LiveBytes, st.TotalBytes))))
}

// snapshotUntilDone takes a snapshot, and repeats that until it succeeds or ctx is done. It returns ctx's error.
func (sn *snapshotter) snapshotUntilDone(ctx context.Context) error {
	for retry := snapshotRetry; ; retry = min(2*retry, maxSnapshotRetry) {
		err := sn.takeSnapshot()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sn.log.Warn("could not take a snapshot of the store; the log grows meanwhile", "retry", retry, "err", err)
		timer := sn.opts.Clock.NewTimer(retry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C():
		}
	}
}

// takeSnapshot takes a snapshot, if anything is new since the last one.
func (sn *snapshotter) takeSnapshot() error {
	sn.writing <- struct{}{}
	defer func() { <-sn.writing }()
	err := sn.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// errWrites says that a snapshot from the leader has to wait.
var errWrites = errors.New("raftstore: this server is writing its own snapshot; send the leader's again later")

// install prevents that a snapshot from the leader is received while this server writes one of its own. Raft allows
// both at the same time, and each sets at its end what the newest snapshot is (snapshot.go, takeSnapshot; raft.go,
// installSnapshot). If the older one ended last, raft would take this server to have less than it has.
func (sn *snapshotter) install() (done func(), err error) {
	select {
	case sn.writing <- struct{}{}:
		return func() { <-sn.writing }, nil
	default:
		return nil, errWrites
	}
}
