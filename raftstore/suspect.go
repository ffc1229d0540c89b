// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// standAfter is how long each voter lets those before it stand for election,
// when there is no leader. It is several times what an election takes.
const standAfter = 100 * time.Millisecond

// ended is a leader whose process this server has found to have ended.
type ended struct {
	leader raft.ServerID
	term   uint64
	at     time.Time
}

// leaderGone is told that a server's process has ended. If that was the leader, the voters need not wait until they
// miss its heartbeats: this one looks at once (silence.go). It may be wrong, where a firewall refuses its connections,
// so a majority has to have found the same.
func (p *clustered) leaderGone(id raft.ServerID) {
	leader, _, term := p.LeaderSeen()
	if leader != id {
		return
	}
	p.ended.Store(&ended{leader: id, term: term, at: time.Now()})
	p.checkLeaderNow()
}

// leaderEnded says whether the leader's process has ended. A message that it sent before may still come in shortly
// after.
func (p *clustered) leaderEnded() bool {
	e := p.ended.Load()
	if e == nil {
		return false
	}
	leader, _, term := p.LeaderSeen()
	return leader == e.leader && term == e.term && p.LeaderHeard().Before(e.at.Add(standAfter))
}

// rank is this server's place among the voters. It reports false if it has no vote.
func (p *clustered) rank() (int, bool) {
	var voters []raft.ServerID
	for _, server := range p.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter {
			voters = append(voters, server.ID)
		}
	}
	slices.Sort(voters)
	return slices.BinarySearch(voters, p.id)
}
