// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// compactKey is written before each compaction by age. Its value is the revision to which that compaction goes. The
// revision of the write itself is the mark, to which the next compaction goes. Upstream's API server has this key for
// the same purpose (k8s.io/apiserver/pkg/storage/etcd3/compact.go), and its watch cache reads it.
const compactKey = "compact_rev_key"

// compactor drops history by age and by size while this server leads. It works beside other compactors, such as the API
// server's own: where one has compacted further, the other has nothing to do.
//
// By age: at each interval of age it writes a mark and compacts to the mark before, if anything was written since the
// last compaction. So a revision older than a mark is compacted one to two intervals after it was written. That also
// holds if nothing is written after it, since the mark is a newer revision. Without a mark the newest revision would
// stay readable until the next write, and a list that was begun at it could be continued for hours.
//
// The marks are in the store, so a new leader or a restarted store continues with the newest one. Each server remembers
// when it first saw that mark, which is when the interval began or later. A new leader takes the interval's begin from
// there: it may compact later than the old leader would have, never earlier.
//
// By size: whenever there is more history than allowed, whatever its age. The limit is what the keys and a margin for
// the next writes leave of the quota, if that is less than the limit for history (bytes): history is compacted before
// writes are refused for lack of quota.
type compactor struct {
	clock   clock.WithTicker
	age     time.Duration // history younger than this is kept, within bytes and quota
	bytes   int64         // limit of history, in bytes
	quota   func() int64  // limit of keys and history together, in bytes
	margin  int64         // what is left for the next writes, in bytes
	view    func() *mvcc.View
	compact func(ctx context.Context, rev int64) error
	// setMark writes compactKey and returns the revision of that write.
	setMark func(ctx context.Context, value string) (rev int64, err error)

	mark      int64         // the newest mark's revision; 0 if there is none
	wake      timers.Signal // sent when there is too much history
	foundMark struct {      // kept on every server
		sync.Mutex
		mark    int64
		at      time.Time // when this server first found that mark
		checked time.Time // when this server last searched for a newer mark
	}
	// futile is the amount of history, in bytes, up to which a compaction by size frees nothing. It is 0 if a
	// compaction would free something.
	futile      atomic.Int64
	lastHistory int64 // bytes of history in the last view; only published uses it
}

// minByQuota is the fraction of the quota that history may always use. Without it, each write to a store whose keys
// fill its quota would cause a compaction, and so end watches that are slightly behind.
const minByQuota = 1.0 / 64

func newCompactor(w *writer) *compactor {
	return &compactor{
		clock: w.opts.Clock, age: w.opts.HistoryAge, bytes: w.opts.HistoryBytes, quota: w.quota.bytes,
		margin: min(int64(w.opts.MaxRequestBytes), w.opts.QuotaBytes/8),
		view:   w.fsm.view, compact: w.compactTo, setMark: w.markHistory, wake: timers.NewSignal(),
	}
}

// allowedBytes returns how many bytes of history may stay.
func (c *compactor) allowedBytes(stats mvcc.Stats) int64 {
	quota := c.quota()
	return min(c.bytes, max(quota-stats.LiveBytes-c.margin, int64(minByQuota*float64(quota))))
}

// published is called for every new view, one after the other, on every server. It does not block.
//
// Less history than before means that something was freed: by a compaction, or by the end of a snapshot that had kept
// history. Then compactions can free something again, so futile is reset. bySize may raise it again afterwards.
func (c *compactor) published(view *mvcc.View) {
	c.findMark(view, c.age/30)
	stats := view.Stats()
	now := stats.HistoryBytes()
	futile := now + c.bytes/4
	if now < c.lastHistory {
		futile = 0
	}
	c.lastHistory = now
	if futile < c.futile.Load() {
		c.futile.Store(futile)
	}
	if now <= max(c.allowedBytes(stats), c.futile.Load()) {
		return
	}
	c.wake.Send()
}

// run compacts until ctx is done. A compactor may be run again.
//
// A compaction fails when this server has lost the leadership or its disk is full. Other parts report both, and the
// next round tries again.
func (c *compactor) run(ctx context.Context) {
	timer := c.clock.NewTimer(c.adoptMark())
	defer timer.Stop()
	for {
		_ = c.bySize(ctx)
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C():
			_ = c.byAge(ctx)
			timer.Reset(c.age) // counted from when the mark is written: a stalled disk may have delayed it
		}
	}
}

// adoptMark takes over the newest mark, and returns the rest of that mark's interval. It returns a tenth of an interval
// at least, since a new leader has other work first. A tenth is also the first wait where there is no mark, for nothing
// is compacted to a first mark before another interval has passed.
func (c *compactor) adoptMark() time.Duration {
	c.findMark(c.view(), 0)
	c.foundMark.Lock()
	defer c.foundMark.Unlock()
	c.mark = c.foundMark.mark
	left := c.age / 10
	if c.mark > 0 {
		left = max(left, c.age-c.clock.Since(c.foundMark.at))
	}
	return left
}

// findMark remembers a view's mark. It does nothing if it was called less than a pause ago.
func (c *compactor) findMark(view *mvcc.View, pause time.Duration) {
	c.foundMark.Lock()
	defer c.foundMark.Unlock()
	now := c.clock.Now()
	if now.Sub(c.foundMark.checked) < pause {
		return
	}
	c.foundMark.checked = now
	if mark := markOf(view); mark != c.foundMark.mark {
		c.foundMark.mark, c.foundMark.at = mark, now
	}
}

// byAge sets a new mark, and compacts to the mark before it.
func (c *compactor) byAge(ctx context.Context) error {
	view, to := c.view(), c.mark
	if !writtenSince(view, view.Compacted()) {
		return nil
	}
	mark, err := c.setMark(ctx, strconv.FormatInt(to, 10))
	if err == nil {
		c.mark = mark
	}
	if to > view.Compacted() {
		err = errors.Join(err, c.compact(ctx, to))
	}
	return err
}

// writtenSince says whether anything but marks was written after a revision.
func writtenSince(view *mvcc.View, rev int64) bool {
	for _, v := range view.History(rev + 1) {
		if string(v.KV().Key) != compactKey {
			return true
		}
	}
	return false
}

// markOf returns the revision of a view's mark, 0 if it has none.
func markOf(view *mvcc.View) (rev int64) {
	view.Walk([]byte(compactKey), nil, view.Revision(), func(v *mvcc.Version) bool {
		rev = v.Revision()
		return false
	})
	return rev
}

// bySize compacts to half of the allowed history, if there is more than allowed.
//
// While a snapshot or a backup is written, a compaction frees nothing. To avoid a compaction at each write, the next
// one then waits until there is a quarter of the limit (bytes) more.
func (c *compactor) bySize(ctx context.Context) error {
	for {
		view := c.view()
		before, allowed := view.Stats().HistoryBytes(), c.allowedBytes(view.Stats())
		if before <= allowed {
			c.futile.Store(0)
			return nil
		}
		to := compactionLeaving(view, allowed/2)
		if to <= view.Compacted() {
			c.futile.Store(before + c.bytes/4)
			return nil
		}
		err := c.compact(ctx, to)
		if view = c.view(); err != nil || !isPruned(view, to) {
			c.futile.Store(view.Stats().HistoryBytes() + c.bytes/4)
			return err
		}
	}
}

// isPruned says whether a compaction to a revision has removed all versions that it can remove.
func isPruned(view *mvcc.View, to int64) bool {
	history := view.History(0)
	return len(history) == 0 || history[0].Revision() >= to
}

// compactionLeaving returns the revision to which a compaction has to go to leave no more than bytes of history.
func compactionLeaving(view *mvcc.View, bytes int64) int64 {
	history := view.History(0)
	var kept int64
	for i := len(history) - 1; i >= 0; i-- {
		if kept += history[i].HistorySize(); kept > bytes {
			return history[i].Revision()
		}
	}
	return 0
}

// compactTo compacts for the compactor. A revision that is already compacted is no error.
func (w *writer) compactTo(ctx context.Context, rev int64) error {
	_, err := w.runOwn(ctx, &pb.CompactionRequest{Revision: rev})
	switch {
	case err == nil:
		w.log.Debug("compacted the store's history", "revision", rev)
	case errors.Is(err, rpctypes.ErrGRPCCompacted):
		return nil
	case ctx.Err() == nil:
		w.log.Warn("could not compact the store's history; will try again", "revision", rev, "err", err)
	}
	return err
}

// markHistory writes the compactor's mark. The quota does not apply to it: without marks, a store beyond its quota
// would keep its history, and so stay beyond the quota.
func (w *writer) markHistory(ctx context.Context, value string) (int64, error) {
	out, err := w.runOwn(ctx, &pb.PutRequest{Key: []byte(compactKey), Value: []byte(value)})
	if err != nil {
		return 0, err
	}
	return out.(*pb.PutResponse).Header.Revision, nil
}
