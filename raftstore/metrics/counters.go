// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Buckets of histograms. They include all bounds of etcd's. Those of the disk begin lower, since a flush takes a tenth
// of a millisecond on a fast disk.
const (
	diskFirst, diskBuckets = 125 * time.Microsecond, 17 // to 8.2 s
	peerFirst, peerBuckets = 100 * time.Microsecond, 16 // to 3.3 s
	snapFirst, snapBuckets = time.Millisecond, 17       // to 65 s
)

const (
	// SlowRead is how long confirming a read may take before it counts as slow.
	SlowRead = 500 * time.Millisecond
	// Stall is how long an append to the log may take before the disk counts as stalled.
	Stall = time.Second
)

// Counters count what a store does. They start at zero with the process. Any number of goroutines may use them.
type Counters struct {
	// Requests. Writes are counted by every server that applies them.
	Ranges, Puts, Deletes, Txns  atomic.Uint64
	LeasesGranted, LeasesRevoked atomic.Uint64

	// Pending is how many writes are waiting for their answer.
	Pending atomic.Int64
	// ProposalsFailed is how many writes failed in the log, and not with an error of the state machine.
	ProposalsFailed atomic.Uint64
	// FencedWrites is how many commands were refused because their term is over.
	FencedWrites atomic.Uint64

	// ReadIndexFailed is how many confirmations of reads failed. ReadIndexSlow is how many failed or took longer than
	// SlowRead. ReadIndex has their durations.
	ReadIndexFailed, ReadIndexSlow atomic.Uint64
	ReadIndex                      *Histogram

	// LogBytes is how many bytes were written to the log's files. LogFlush has the duration of each write until it was
	// on disk.
	LogBytes atomic.Uint64
	LogFlush *Histogram
	// Stalls is how many appends took longer than Stall. StalledNanos is the sum of their durations.
	Stalls, StalledNanos atomic.Uint64

	// SnapshotBytes is how many bytes of snapshots were written, received ones included. SnapshotSave has the duration
	// of each snapshot.
	SnapshotBytes atomic.Uint64
	SnapshotSave  *Histogram
}

// NewCounters returns counters at zero.
func NewCounters() *Counters {
	return &Counters{
		ReadIndex:    NewHistogram(peerFirst, peerBuckets),
		LogFlush:     NewHistogram(diskFirst, diskBuckets),
		SnapshotSave: NewHistogram(snapFirst, snapBuckets),
	}
}

// NewPeerHistogram returns a histogram for round trips between servers.
func NewPeerHistogram() *Histogram { return NewHistogram(peerFirst, peerBuckets) }

// Flushed counts an append to the log.
func (c *Counters) Flushed(took time.Duration, bytes int) {
	c.LogBytes.Add(uint64(bytes))
	c.LogFlush.Observe(took)
	if took > Stall {
		c.Stalls.Add(1)
		c.StalledNanos.Add(uint64(took))
	}
}

// ReadIndexDone counts a confirmation of a read.
func (c *Counters) ReadIndexDone(took time.Duration, err error) {
	c.ReadIndex.Observe(took)
	if err != nil {
		c.ReadIndexFailed.Add(1)
	}
	if err != nil || took > SlowRead {
		c.ReadIndexSlow.Add(1)
	}
}

// SnapshotDone counts a snapshot that was written.
func (c *Counters) SnapshotDone(took time.Duration, bytes int64) {
	c.SnapshotBytes.Add(uint64(bytes))
	c.SnapshotSave.Observe(took)
}

// Applied counts a command by its response from the state machine: a pointer to one of etcd's responses, or nil if the
// command failed.
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
