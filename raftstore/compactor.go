// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// compactorTick is how often the compactor looks at the history.
	compactorTick = time.Minute
	// worthCompacting is how many bytes of history beyond its age are worth a
	// log entry. Less of it waits, so that an idle store is left alone.
	worthCompacting = 4 << 20
	// longestWait is how long history beyond its age is kept at most.
	longestWait = time.Hour
)

// compactor drops history by age and by size while this server leads. It works
// beside other compactors, such as the API server's own: whoever compacts
// further wins, and the other has nothing to do.
type compactor struct {
	clock   clock.WithTicker
	age     time.Duration // history younger than this is kept
	bytes   int64         // unless there is more than this
	view    func() *mvcc.View
	compact func(ctx context.Context, rev int64) error

	marks []mark // in order; what the revision was when
}

type mark struct {
	at  time.Time
	rev int64
}

// run compacts until ctx is done. A compactor may be run again.
func (c *compactor) run(ctx context.Context) {
	c.marks = c.marks[:0]
	ticker := c.clock.NewTicker(compactorTick)
	defer ticker.Stop()
	for {
		if to := c.due(c.clock.Now()); to > 0 {
			// An error here is the leader's loss of its office or the disk's
			// lack of room. Both are known, and the next tick tries again.
			_ = c.compact(ctx, to)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// due takes a mark and returns the revision to which to compact, or 0.
func (c *compactor) due(now time.Time) int64 {
	view := c.view()
	if n := len(c.marks); n == 0 || c.marks[n-1].rev != view.Revision() {
		c.marks = append(c.marks, mark{now, view.Revision()})
	}
	if to := c.bySize(view); to > 0 {
		return to
	}
	return c.byAge(view, now)
}

// byAge returns the newest revision that is old enough.
func (c *compactor) byAge(view *mvcc.View, now time.Time) int64 {
	old := 0
	for old < len(c.marks) && now.Sub(c.marks[old].at) >= c.age {
		old++
	}
	if old == 0 {
		return 0
	}
	target, since := c.marks[old-1].rev, c.marks[0].at
	if target <= view.Compacted() {
		c.marks = c.marks[old-1:]
		return 0
	}
	if now.Sub(since) < c.age+longestWait && historyBytes(view.History(0), target) < worthCompacting {
		return 0
	}
	c.marks = c.marks[old-1:]
	return target
}

// bySize returns the revision that leaves half of the allowed history, if
// there is more than allowed.
func (c *compactor) bySize(view *mvcc.View) int64 {
	stats := view.Stats()
	if stats.TotalBytes-stats.LiveBytes <= c.bytes {
		return 0
	}
	history := view.History(0)
	var size int64
	for i := len(history) - 1; i > 0; i-- {
		size += history[i].Size()
		if size > c.bytes/2 {
			if rev := history[i].Revision(); rev > view.Compacted() {
				return rev
			}
			return 0
		}
	}
	return 0
}

// historyBytes is the size of the versions up to a revision, an upper bound of
// what compacting to it frees.
func historyBytes(history []*mvcc.Version, to int64) int64 {
	var size int64
	for _, v := range history {
		if v.Revision() > to || size >= worthCompacting {
			break
		}
		size += v.Size()
	}
	return size
}

// compactTo is how the compactor compacts.
func (s *Store) compactTo(ctx context.Context, rev int64) error {
	lead, _ := s.lead.get()
	_, err := s.Write(WithTerm(ctx, lead.Term), &pb.CompactionRequest{Revision: rev})
	switch {
	case err == nil:
		s.log.Debug("compacted the store's history", "revision", rev)
	case errors.Is(err, rpctypes.ErrGRPCCompacted):
		return nil
	case ctx.Err() == nil:
		s.log.Warn("could not compact the store's history; will try again", "revision", rev, "err", err)
	}
	return err
}
