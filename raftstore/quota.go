// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"log/slog"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// mostQuota is etcd's default.
	mostQuota = 2 << 30
	// leastQuota is enough for the objects of a small cluster: those of a fresh
	// one take 2 MB.
	leastQuota = 16 << 20
	// besideStore is what the process that holds the store needs without it, an
	// API server and a node, in bytes.
	besideStore = 192 << 20
	// perQuotaByte is how many bytes of memory a byte of the quota may come to:
	// a quarter more than is counted, as much again of garbage before it is
	// collected under load, and what is read, sent and kept in raft's log.
	perQuotaByte = 3
)

// quotaOf is the quota for this much memory, in bytes: so much that writes are
// refused before the kernel ends the process.
func quotaOf(memory int64) int64 {
	return min(max((memory-besideStore)/perQuotaByte, leastQuota), mostQuota)
}

// defaultQuota is the quota for the memory that this process may use.
func defaultQuota(log *slog.Logger) int64 {
	limit, err := memory.Self()
	if err != nil {
		log.Warn("the store's quota does not follow from the memory that there is", "quota", int64(mostQuota), "err", err)
		return mostQuota
	}
	quota := quotaOf(limit.Bytes)
	log.Debug("the store's quota follows from the memory that there is", "quota", quota, "memory", limit.String())
	return quota
}

// quota refuses writes for which the memory, or the disks of a majority, have no room.
type quota struct {
	*replica
	refusing    atomic.Bool // writes, for the quota: what was said of it last
	withoutRoom atomic.Bool // this server leads, a voter's disk is full, and those that store and have room are no majority
}

// within refuses what would add to a store that is over its quota, or for which no majority has room.
func (q *quota) within(req mvcc.Request) error {
	over := q.over()
	if over != q.refusing.Load() && q.refusing.CompareAndSwap(!over, over) {
		if over {
			q.log.Error("the store's quota is used up: writes that add anything are refused, reads and deletions are not. Delete what is not needed, "+
				"or give the machine or its control group more memory", "quota", q.opts.QuotaBytes, "live", q.fsm.view().Stats().LiveBytes)
		} else {
			q.log.Info("the store is within its quota again: accepting writes")
		}
	}
	if (over || q.withoutRoom.Load()) && mvcc.Grows(req) {
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// over says whether the quota is used up.
func (q *quota) over() bool { return q.fsm.view().Stats().TotalBytes > q.opts.QuotaBytes }
