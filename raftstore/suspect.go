// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// candidacyDelay is how long a voter waits, when there is no leader, for each voter ahead of it to become a candidate.
// It is several times the duration of an election.
const candidacyDelay = 100 * time.Millisecond

// ended is a leader whose process this server has found to have ended.
type ended struct {
	leader raft.ServerID
	term   uint64
	at     time.Time
}

// leaderGone is called when a server's process has ended. If that was the leader, the voters need not wait until they
// miss its heartbeats, and this one checks at once (silence.go). The report may be wrong, if a firewall refuses
// connections. So a majority has to find the same.
func (e *election) leaderGone(id raft.ServerID) {
	leader, _, term := e.LeaderSeen()
	if leader != id {
		return
	}
	e.ended.Store(&ended{leader: id, term: term, at: time.Now()})
	e.checkLeaderNow()
}

// leaderEnded says whether the leader's process has ended. A message that the process sent before may still arrive up
// to candidacyDelay later.
func (e *election) leaderEnded() bool {
	found := e.ended.Load()
	if found == nil {
		return false
	}
	leader, _, term := e.LeaderSeen()
	return leader == found.leader && term == found.term && e.LeaderContact().Before(found.at.Add(candidacyDelay))
}

// rank returns this server's position among the voters, by id. It reports false if this server has no vote.
func (e *election) rank() (int, bool) {
	var voters []raft.ServerID
	for _, server := range e.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter {
			voters = append(voters, server.ID)
		}
	}
	slices.Sort(voters)
	return slices.BinarySearch(voters, e.id)
}
