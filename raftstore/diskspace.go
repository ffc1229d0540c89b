// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose own disk is full refuses writes and transfers its leadership. But a majority must store what a leader
// accepts, and a follower cannot refuse an entry: it uses up its reserve, and then blocks, elections included. So a
// leader refuses what adds to the store while a voter's disk is full and the voters with disk space are no majority. A
// voter that does not store, since its process or disk does not work, counts as one with a full disk: the majority then
// needs the one whose disk is full. Deletions are few and small, and free disk space with the next Raft snapshot.

// diskSpaceTick is how often a leader that writes asks the voters whether their disks are full, while none is. In that
// time the reserve of a voter lasts for 3 MB of writes a second.
const diskSpaceTick = 5 * time.Second

// diskSpace is what a leader knows of the disk space and the quotas of the voters.
type diskSpace struct {
	askedAt     time.Time
	newestIndex uint64 // index of the log's last entry when they were asked
	fullVoters  int    // number of voters that reported a full disk then
	quotas      map[raft.ServerID]*voterQuota
	sentQuota   int64 // the cluster's quota in bytes that was last sent to them
}

// checkDiskSpace asks the voters for their disk space and quotas. While writes are refused for lack of either, it does
// so at each call, and also when the cluster's quota has changed, which it sends them. Otherwise it does nothing if
// nothing was written since the last time, or if no disk was full then and diskSpaceTick has not passed.
func (s *steward) checkDiskSpace(ctx context.Context, r *diskSpace) {
	newest, was, quota := s.raft.LastIndex(), s.quota.majorityFull.Load(), s.quota.cluster.Load()
	if !was && !s.quota.refusesWrites() && quota == r.sentQuota &&
		(newest == r.newestIndex || r.fullVoters == 0 && time.Since(r.askedAt) < diskSpaceTick) {
		return
	}
	r.askedAt, r.newestIndex, r.sentQuota = time.Now(), newest, quota
	servers := s.voters()
	full, withSpace, quotas := s.diskSpaceOf(ctx, servers)
	if ctx.Err() != nil {
		return
	}
	r.fullVoters = full
	r.noteQuotas(servers, quotas)
	s.quota.cluster.Store(smallestQuota(r.quotas, s.fsm.view().Stats().LiveBytes))
	is := full > 0 && withSpace <= len(servers)/2
	s.quota.majorityFull.Store(is)
	switch {
	case is && !was:
		s.log.Error("too many servers' disks are full: no majority can store. Writes that add anything to the store are refused, "+
			"reads and deletions are not. Free space on those disks", "full", full, "with space", withSpace, "voters", len(servers))
	case was && !is:
		s.log.Info("a majority of the servers has free disk space again: accepting writes")
	}
}

// noteQuotas notes the quotas that voters reported. A voter that did not answer keeps the one that it reported before.
func (r *diskSpace) noteQuotas(voters []raft.Server, quotas map[raft.ServerID]int64) {
	known := make(map[raft.ServerID]*voterQuota, len(voters))
	for _, v := range voters {
		q := r.quotas[v.ID]
		if bytes := quotas[v.ID]; bytes > 0 {
			q = cmp.Or(q, &voterQuota{})
			q.bytes = bytes
		}
		if q != nil {
			known[v.ID] = q
		}
	}
	r.quotas = known
}

// diskSpaceOf returns how many of these servers report a full disk, and how many of the others store. A server that
// stores but does not answer in time counts as one with space. quotas are those that servers reported, in bytes: older
// ones report none.
func (s *steward) diskSpaceOf(ctx context.Context, servers []raft.Server) (full, withSpace int, quotas map[raft.ServerID]int64) {
	type space struct {
		id           raft.ServerID
		full, stores bool
		quota        int64
	}
	term := s.raft.CurrentTerm()
	replies := askMembers(ctx, servers, func(ctx context.Context, m raft.Server) (space, bool) {
		if m.ID == s.id { // this server refuses writes by itself when its disk is full
			return space{id: m.ID, stores: true, quota: s.opts.QuotaBytes}, true
		}
		info, _ := s.exchangeInfo(ctx, s.Call, m, infoCall{ClusterQuota: s.quota.cluster.Load()}) // zero after an error
		_, stored := s.Stored(m.ID, term)
		return space{m.ID, info.Full, time.Since(stored) < healthyWithin, info.Quota}, true
	}, nil)
	quotas = make(map[raft.ServerID]int64)
	for _, r := range replies {
		quotas[r.id] = r.quota
		switch {
		case r.full:
			full++
		case r.stores:
			withSpace++
		}
	}
	return full, withSpace, quotas
}
