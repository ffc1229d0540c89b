// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Buckets of histograms. All bounds of etcd's are among them; ours begin
// lower, since on a good disk a flush takes a tenth of a millisecond.
const (
	diskFirst, diskBuckets = 125 * time.Microsecond, 17 // to 8.2 s
	peerFirst, peerBuckets = 100 * time.Microsecond, 16 // to 3.3 s
	snapFirst, snapBuckets = time.Millisecond, 17       // to 65 s
)

// Counters are what a store counts while it works. They start at zero with the
// process, and may be used by any number of goroutines.
type Counters struct {
	// Requests. Writes are counted by every server that applies them.
	Ranges, Puts, Deletes, Txns atomic.Uint64
	// Events were handed to watches.
	Events atomic.Uint64
	// Leases, as applied; Expired only by the leader that revoked them.
	LeasesGranted, LeasesRevoked, LeasesRenewed, LeasesExpired atomic.Uint64

	// LeaderChanges is how often this server learned of another leader, its
	// first one included.
	LeaderChanges atomic.Uint64
	// ProposalsFailed is how many writes ended with an error of the log's, not
	// of their own.
	ProposalsFailed atomic.Uint64
	// Pending is how many writes wait for their answer now.
	Pending atomic.Int64
	// SlowApplies is how many batches of entries took longer than SlowApply.
	SlowApplies atomic.Uint64
	// HeartbeatFailures is how often a leader could not reach a follower.
	HeartbeatFailures atomic.Uint64

	// ReadIndexRounds is how often this server, leading, asked a majority
	// whether it still leads, or, following, asked the leader how far to wait.
	// ReadIndexFailed is how many of them gave no answer, ReadIndexSlow how
	// many took longer than SlowRead. ReadIndex is how long one took.
	ReadIndexRounds, ReadIndexFailed, ReadIndexSlow atomic.Uint64
	ReadIndex                                       *Histogram

	// ForwardedWrites is how many writes went to the leader from here,
	// ForwardRetries how many times one was sent again.
	ForwardedWrites, ForwardRetries atomic.Uint64
	// FencedWrites is how many writes were refused because their term is over.
	FencedWrites atomic.Uint64

	// LogBytes is what was written to the log's files; LogFlush how long that
	// took each time, until it was on disk.
	LogBytes atomic.Uint64
	LogFlush *Histogram
	// Stalls is how often an append took so long that leadership was given up
	// or withheld; StalledNanos how long those took together.
	Stalls, StalledNanos atomic.Uint64

	// SnapshotBytes is what was written as snapshots, received ones included.
	SnapshotBytes atomic.Uint64
	// SnapshotSave is how long it took to write one here, SnapshotSend to send
	// one to another server, SnapshotReceive to receive one.
	SnapshotSave, SnapshotSend, SnapshotReceive *Histogram
}

const (
	// SlowApply is how long applying may take without being slow, as in etcd.
	SlowApply = 100 * time.Millisecond
	// SlowRead is how long confirming a read may take without being slow.
	SlowRead = 500 * time.Millisecond
)

// NewCounters returns counters at zero.
func NewCounters() *Counters {
	return &Counters{
		ReadIndex:       NewHistogram(peerFirst, peerBuckets),
		LogFlush:        NewHistogram(diskFirst, diskBuckets),
		SnapshotSave:    NewHistogram(snapFirst, snapBuckets),
		SnapshotSend:    NewHistogram(snapFirst, snapBuckets),
		SnapshotReceive: NewHistogram(snapFirst, snapBuckets),
	}
}

// NewPeerHistogram makes one for round trips between servers.
func NewPeerHistogram() *Histogram { return NewHistogram(peerFirst, peerBuckets) }

// Flushed counts an append to the log.
func (c *Counters) Flushed(bytes int, took time.Duration) {
	c.LogBytes.Add(uint64(bytes))
	c.LogFlush.Observe(took)
}

// Stalled counts an append that took too long.
func (c *Counters) Stalled(took time.Duration) {
	c.Stalls.Add(1)
	c.StalledNanos.Add(uint64(took))
}

// ReadIndexDone counts a confirmation of a read.
func (c *Counters) ReadIndexDone(took time.Duration, err error) {
	c.ReadIndexRounds.Add(1)
	c.ReadIndex.Observe(took)
	if err != nil {
		c.ReadIndexFailed.Add(1)
	}
	if err != nil || took > SlowRead {
		c.ReadIndexSlow.Add(1)
	}
}

// Applied counts a command by its response, as the state machine gave it: a
// pointer to a response of etcd's, or nil for one that failed.
func (c *Counters) Applied(response any) {
	switch r := response.(type) {
	case *pb.PutResponse:
		c.Puts.Add(1)
	case *pb.DeleteRangeResponse:
		c.Deletes.Add(1)
	case *pb.TxnResponse:
		c.Txns.Add(1)
		c.appliedOps(r)
	case *pb.LeaseGrantResponse:
		c.LeasesGranted.Add(1)
	case *pb.LeaseRevokeResponse:
		c.LeasesRevoked.Add(1)
	}
}

func (c *Counters) appliedOps(r *pb.TxnResponse) {
	for _, op := range r.Responses {
		switch o := op.Response.(type) {
		case *pb.ResponseOp_ResponseRange:
			c.Ranges.Add(1)
		case *pb.ResponseOp_ResponsePut:
			c.Puts.Add(1)
		case *pb.ResponseOp_ResponseDeleteRange:
			c.Deletes.Add(1)
		case *pb.ResponseOp_ResponseTxn:
			c.appliedOps(o.ResponseTxn)
		}
	}
}
