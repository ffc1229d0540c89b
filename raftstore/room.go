// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A leader has room itself, or it refuses writes and hands its leadership on. But what it takes is stored by a majority, and a follower
// cannot refuse an entry: it uses up what it holds back, and then blocks, elections too. So a leader stops taking what adds to the store
// while the voters that are not full are no majority. Deletions are few and small, and lead to space on the disk with the next Raft
// snapshot.

// roomTick is how often a leader that writes asks the voters whether they have room. In that time they bear 3 MB a second.
const roomTick = 5 * time.Second

// room is what a leader knows of the voters' disks.
type room struct {
	asked  time.Time
	newest uint64 // entry of the log when they were asked
}

// lookForRoom asks the voters for their disks' space, if something was written since it last did or they had none.
func (p *peers) lookForRoom(ctx context.Context, r *room) {
	newest, was := p.s.raft.LastIndex(), p.s.withoutRoom.Load()
	if !was && (newest == r.newest || time.Since(r.asked) < roomTick) {
		return
	}
	r.asked, r.newest = time.Now(), newest
	servers := votersOf(p.s.raft.GetConfiguration().Configuration().Servers)
	full := p.fullOf(ctx, servers)
	if ctx.Err() != nil {
		return
	}
	is := len(servers)-full <= len(servers)/2
	p.s.withoutRoom.Store(is)
	switch {
	case is && !was:
		p.s.log.Error("the disks of so many servers are full that no majority has room: writes that add anything to the store are refused, "+
			"reads and deletions are not. Free space on those disks", "full", full, "voters", len(servers))
	case was && !is:
		p.s.log.Info("the disks of a majority have room again: accepting writes")
	}
}

// fullOf returns how many of these servers say that their disk is full.
func (p *peers) fullOf(ctx context.Context, servers []raft.Server) int {
	var full atomic.Int64
	var asked sync.WaitGroup
	for _, m := range servers {
		if m.ID == p.s.id {
			continue // it refuses for itself
		}
		asked.Go(func() {
			if info, err := p.s.ask(ctx, m); err == nil && info.Full {
				full.Add(1)
			}
		})
	}
	asked.Wait()
	return int(full.Load())
}
