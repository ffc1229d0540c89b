// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// standAfter is how long each voter lets those before it stand for election,
// when the leader has died. It is several times what an election takes.
const standAfter = 100 * time.Millisecond

// leaderGone is told that a server's process has ended. If that was the leader,
// the voters need not wait until they miss its heartbeats: they stand one after
// the other, so that they do not split the votes. It is always safe to stand;
// were the leader alive after all, it would only lose its office.
func (p *peers) leaderGone(id raft.ServerID) {
	if !p.campaigning.CompareAndSwap(false, true) {
		return
	}
	if !p.s.spawn(func() {
		defer p.campaigning.Store(false)
		_, leader := p.rank(id)
		now, changed := p.s.leader.get()
		seen, _, term := p.LeaderSeen()
		if !leader || now.Self || now.ID != id && now.known() || seen != id {
			return
		}
		// Who has the longest log first: the others might not be elected. It takes a millisecond, and is waited for no longer than for one who
		// stands before this one.
		own, rank := p.standing(), 0
		for _, other := range p.standings(p.s.ctx, id, standAfter/2) {
			if other.ahead(own) {
				rank++
			}
		}
		timer := time.NewTimer(time.Duration(rank) * standAfter)
		defer timer.Stop()
		for {
			select {
			case <-p.s.ctx.Done():
				return
			case <-changed:
				if now, changed = p.s.leader.get(); now.known() && now.ID != id {
					return // somebody was elected
				}
				continue
			case <-timer.C:
			}
			if now := p.s.raft.CurrentTerm(); now != term {
				// An election is under way: another was quicker, or the leader
				// handed over before it ended. Let it come to something.
				term = now
				timer.Reset(time.Duration(rank+1) * standAfter)
				continue
			}
			break
		}
		p.s.log.Info("the store's leader has ended: standing for election", "leader", id)
		p.standNow(p.s.ctx)
	}) {
		p.campaigning.Store(false)
	}
}

// rank is this server's place among the voters without the one that is gone, "" if
// none is. It reports false if either has no vote.
func (p *peers) rank(gone raft.ServerID) (int, bool) {
	var voters []raft.ServerID
	for _, server := range p.s.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter {
			voters = append(voters, server.ID)
		}
	}
	if gone != "" && !slices.Contains(voters, gone) || !slices.Contains(voters, p.s.id) {
		return 0, false
	}
	voters = slices.DeleteFunc(voters, func(id raft.ServerID) bool { return id == gone })
	slices.Sort(voters)
	return slices.Index(voters, p.s.id), true
}
