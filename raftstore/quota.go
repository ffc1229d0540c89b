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
	// mostQuota is the largest quota that is computed, in bytes. It is etcd's default.
	mostQuota = 2 << 30
	// leastQuota is the smallest such quota, in bytes. It is enough for a small cluster: the objects of a new one use 2
	// MB.
	leastQuota = 16 << 20
	// besideStore is the memory that the process needs without the store, for an API server and a node, in bytes.
	besideStore = 192 << 20
	// perQuotaByte is how many bytes of memory one byte of the quota may need. Data takes a quarter more than is
	// counted. As much again is garbage, before it is collected under load. The rest is for what is read, sent and kept
	// in raft's log.
	perQuotaByte = 3
)

// quotaOf returns the quota of a process that may use memory bytes. With that quota, writes are refused before the
// kernel kills the process.
func quotaOf(memory int64) int64 {
	return min(max((memory-besideStore)/perQuotaByte, leastQuota), mostQuota)
}

// defaultQuota returns how large the store may become, in bytes. It is computed from the memory that this process may
// use.
func defaultQuota(log *slog.Logger) int64 {
	limit, err := memory.Self()
	if err != nil {
		log.Warn("the store's quota could not be derived from the available memory; using the largest one", "quota", int64(mostQuota), "err", err)
		return mostQuota
	}
	quota := quotaOf(limit.Bytes)
	log.Debug("derived the store's quota from the available memory", "quota", quota, "memory", limit.String())
	return quota
}

// quota refuses writes that do not fit into the memory, or for which the disks of a majority are too full.
type quota struct {
	*replica
	refusing    atomic.Bool // writes are refused for the quota, as logged last
	withoutRoom atomic.Bool // this server leads, a voter's disk is full, and those that store and have room are no majority
}

// within returns etcd's ErrNoSpace for a request that would add to a store beyond its quota, or while no majority has
// room on its disks.
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

// over says whether keys and history exceed the quota.
func (q *quota) over() bool { return q.fsm.view().Stats().TotalBytes > q.opts.QuotaBytes }
