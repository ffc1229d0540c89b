// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A leader has room itself, or it refuses writes and hands its leadership on. But what it takes is stored by a
// majority, and a follower cannot refuse an entry: it uses up what it holds back, and then blocks, elections too. So a
// leader stops taking what adds to the store while a voter's disk is full and the voters that have room are no
// majority. One that does not store, since its process or its disk does not work, has no room either: the majority then
// needs the one with the full disk. Deletions are few and small, and lead to space on the disk with the next Raft
// snapshot.

// roomTick is how often a leader that writes asks the voters whether they have room, while none is full. In that time
// they bear 3 MB a second.
const roomTick = 5 * time.Second

// room is what a leader knows of the voters' disks.
type room struct {
	asked  time.Time
	newest uint64 // entry of the log when they were asked
	full   int    // voters that said then that their disk is full
}

// checkRoom asks the voters for their disks' space, if something was written since it last did or they had none.
func (s *steward) checkRoom(ctx context.Context, r *room) {
	newest, was := s.raft.LastIndex(), s.quota.withoutRoom.Load()
	if !was && (newest == r.newest || r.full == 0 && time.Since(r.asked) < roomTick) {
		return
	}
	r.asked, r.newest = time.Now(), newest
	servers := votersOf(s.raft.GetConfiguration().Configuration().Servers)
	full, roomy := s.roomOf(ctx, servers)
	if ctx.Err() != nil {
		return
	}
	r.full = full
	is := full > 0 && roomy <= len(servers)/2
	s.quota.withoutRoom.Store(is)
	switch {
	case is && !was:
		s.log.Error("servers' disks are full, and those that store and have room are no majority: writes that add anything to the store are refused, "+
			"reads and deletions are not. Free space on those disks", "full", full, "with room", roomy, "voters", len(servers))
	case was && !is:
		s.log.Info("the disks of a majority have room again: accepting writes")
	}
}

// roomOf returns how many of these servers say that their disk is full, and how many of the others store. One that
// stores and does not answer in time has room.
func (s *steward) roomOf(ctx context.Context, servers []raft.Server) (full, roomy int) {
	term := s.raft.CurrentTerm()
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, m := range servers {
		if m.ID == s.id {
			mu.Lock()
			roomy++ // it refuses for itself
			mu.Unlock()
			continue
		}
		asked.Go(func() {
			info, err := s.requestInfo(ctx, s.Call, m)
			_, stored := s.Stored(m.ID, term)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && info.Full:
				full++
			case time.Since(stored) < healthyWithin:
				roomy++
			}
		})
	}
	asked.Wait()
	return full, roomy
}
