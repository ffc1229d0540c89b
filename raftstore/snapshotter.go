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
	// minLogBytes is how much log is worth a snapshot at least. Replaying it
	// takes a fraction of a second, although it may be packed to a quarter.
	minLogBytes = 16 << 20
	// trailingLogs is how many of the entries that a snapshot covers stay in the
	// log at least. With one voter they are not needed.
	trailingLogs = 128
	// trailingBytes is how much of what a snapshot covers stays in the log where
	// there are other servers: one that was away for a moment gets that instead
	// of a whole snapshot.
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
	*replica
	wake timers.Signal // look again
	// writing is held by who writes a snapshot, hence its capacity of 1.
	writing chan struct{}
	// appended counts bytes since the start. At due it is time to look.
	appended, due atomic.Int64
}

func newSnapshotter(r *replica) *snapshotter {
	sn := &snapshotter{replica: r, wake: timers.NewSignal(), writing: make(chan struct{}, 1)}
	sn.due.Store(minLogBytes)
	return sn
}

// grown is called after each append.
func (sn *snapshotter) grown(total int64) {
	sn.appended.Store(total)
	if total < sn.due.Load() {
		return
	}
	sn.wake.Send()
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
		now, stats := sn.appended.Load(), sn.fsm.view().Stats()
		wait := worthSnapshot(stats, packed)
		if now >= last+wait {
			if err := sn.take(ctx); err != nil {
				return
			}
			last = now
			if size, _ := sn.dir.Snapshots.Newest(); size > 0 {
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
		err := sn.once()
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

// once takes a snapshot, if there is anything new.
func (sn *snapshotter) once() error {
	sn.writing <- struct{}{}
	defer func() { <-sn.writing }()
	err := sn.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// errWrites says that a snapshot of the leader's has to wait.
var errWrites = errors.New("raftstore: this server is writing a snapshot of its own; send that again")

// install keeps a snapshot from the leader and one of this server's own apart.
// Raft lets both be under way, and each says at its end what the newest snapshot
// is (snapshot.go, takeSnapshot; raft.go, installSnapshot): were the older one the
// last to say so, raft would vouch for less than this server has.
func (sn *snapshotter) install() (done func(), err error) {
	select {
	case sn.writing <- struct{}{}:
		return func() { <-sn.writing }, nil
	default:
		return nil, errWrites
	}
}
