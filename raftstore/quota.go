// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"errors"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// maxQuota is the largest quota that is computed, in bytes. It is etcd's default.
	maxQuota = 2 << 30
	// minQuota is the smallest such quota, in bytes. It is enough for a small cluster: the objects of a new one use 2
	// MB.
	minQuota = 16 << 20
	// besideStore is the memory that the process needs without the store, for an API server and a node, in bytes.
	besideStore = 192 << 20
	// perQuotaByte is how many bytes of memory one byte of the quota may need: 1.25 for the data, which takes a quarter
	// more than is counted, 1.25 for garbage before it is collected under load, and 0.5 for reads, messages to other
	// servers and raft's log.
	perQuotaByte = 3
)

// quotaOf returns the quota of a process that may use memory bytes. With that quota, writes are refused before the
// kernel kills the process.
func quotaOf(memory int64) int64 {
	return min(max((memory-besideStore)/perQuotaByte, minQuota), maxQuota)
}

// defaultQuota returns how large the store may become, in bytes. It is computed from the memory that this process may
// use.
func defaultQuota(log *slog.Logger) int64 {
	limit, err := memory.Self()
	if err != nil {
		log.Warn("the store's quota could not be derived from the available memory; using the largest one", "quota", int64(maxQuota), "err", err)
		return maxQuota
	}
	quota := quotaOf(limit.Bytes)
	log.Debug("derived the store's quota from the available memory", "quota", quota, "memory", limit.String())
	return quota
}

// quota refuses writes that do not fit into the memory, or for which the disks of a majority are too full. Only the
// leader asks it, for its own clients and for those of the other servers.
type quota struct {
	*replica
	leadership *leadership
	refusing   atomic.Bool // writes are refused for the quota, as logged last
	// majorityFull says that this server leads, a voter's disk is full, and those that store and have disk space are no
	// majority.
	majorityFull atomic.Bool
	cluster      atomic.Int64 // the cluster's quota in bytes, by the last leader that this server knows of; 0: not known
	underWay     atomic.Int64 // bytes of the writes that were admitted and are not in the view yet, or have just got there
	refused      atomic.Int64 // size in bytes of the largest refused write, 0 once that would fit
}

const (
	// reserveShare is the share of the quota that only steps of a deletion may use.
	reserveShare = 32
	// maxLengthened is by how many bytes a step of a deletion may lengthen what is stored.
	maxLengthened = 1 << 10
)

// bytes returns how many bytes keys and history may take: on all voters, and on this server if that is not known.
func (q *quota) bytes() int64 { return cmp.Or(q.cluster.Load(), q.opts.QuotaBytes) }

// admit returns etcd's ErrNoSpace for a command that does not fit into the quota, or that would add to the store while
// no majority has disk space. done must be called when the command's result is known, or was given up.
//
// All that was admitted fits in together, so that the reserve is there when it is needed.
func (q *quota) admit(c mvcc.Command) (done func(), err error) {
	size := mvcc.Added(c.Request)
	if size == 0 {
		return func() {}, nil
	}
	needed := q.underWay.Add(size) // before the view is read: a write that has ended is in the one or the other
	view, limit := q.fsm.view(), q.bytes()
	if c.Deleting && view.Lengthened(c.Request) <= maxLengthened {
		limit += limit / reserveShare
	}
	fits := view.Stats().TotalBytes+needed <= limit
	if !fits {
		q.refused.Store(max(q.refused.Load(), size))
	}
	q.logChange(q.refusesWrites())
	if !fits || q.majorityFull.Load() {
		q.underWay.Add(-size)
		return nil, rpctypes.ErrGRPCNoSpace
	}
	return func() { q.underWay.Add(-size) }, nil
}

func (q *quota) logChange(over bool) {
	if over == q.refusing.Load() || !q.refusing.CompareAndSwap(!over, over) {
		return
	}
	if over {
		q.log.Error("the store's quota is used up: writes that do not fit in are refused, reads and deletions are not. Delete what is not needed, "+
			"or give the servers' machines or control groups more memory", "quota", q.bytes(), "live", q.fsm.view().Stats().LiveBytes)
	} else {
		q.log.Info("the store is within its quota again: accepting writes")
	}
}

// refusesWrites says whether this server leads and refuses writes because of the quota. It does so while the largest
// write that it refused would still exceed the quota.
func (q *quota) refusesWrites() bool {
	if lead, _ := q.leadership.get(); !lead.Leader {
		return false
	}
	largest := q.refused.Load()
	if q.fsm.view().Stats().TotalBytes+largest > q.bytes() {
		return true
	}
	q.refused.CompareAndSwap(largest, 0)
	return false
}

// reason returns why this server refuses writes.
func (q *quota) reason() metrics.Refusal {
	switch err := q.dir.Refusing(); {
	case errors.Is(err, disk.ErrNoSpace):
		return metrics.RefusingSpace
	case err != nil:
		return metrics.RefusingFailing
	case q.majorityFull.Load():
		return metrics.RefusingSpace
	case q.refusesWrites():
		return metrics.RefusingQuota
	}
	return metrics.RefusingNone
}

// endTerm forgets why this server refused writes as the leader.
func (q *quota) endTerm() {
	q.majorityFull.Store(false)
	q.refused.Store(0)
}

// A voterQuota is the quota of one voter, as it reported it last.
type voterQuota struct {
	bytes int64
	// ignored says that the voter had less memory than the store needed when it was asked, and not a quarter more
	// since.
	ignored bool
}

// smallestQuota returns the smallest quota of some voters, in bytes, 0 if there are none. A voter whose quota, with the
// reserve, is below live is ignored: it would refuse all writes of the cluster, and free nothing by that. It counts
// again once its quota is enough: see enoughFor. If all are ignored, it is the largest.
func smallestQuota(voters map[raft.ServerID]*voterQuota, live int64) (smallest int64) {
	largest := int64(0)
	for _, v := range voters {
		switch {
		case v.bytes+v.bytes/reserveShare < live:
			v.ignored = true
		case enoughFor(v.bytes, live):
			v.ignored = false
		}
		largest = max(largest, v.bytes)
		if !v.ignored && (smallest == 0 || v.bytes < smallest) {
			smallest = v.bytes
		}
	}
	return cmp.Or(smallest, largest)
}

// enoughFor says whether a server with a quota can join a cluster whose keys take live bytes: a quarter is left for
// history and growth.
func enoughFor(quota, live int64) bool { return quota >= live+live/4 }
