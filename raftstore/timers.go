// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"time"

	"github.com/hashicorp/raft"
)

// Raft has two times of its own, and both depend on what goes on (docs/adr/0082):
//
// The first is how long a follower does without its leader before it stands by itself, between one and two of them, by chance. The same number
// sets the pace of a leader's heartbeats. The voters here look themselves (silence.go), and whoever raft makes a candidate beside that either
// shares the votes with the one whose turn it is or, being refused its pre-votes, is missing among those who can stand. So only a leader, and
// who never had one where disks are quick, has it short. A follower's is what is left if the question finds no answer.
//
// The second is how long a candidate waits for votes. A voter has to flush its disk three times before it answers, and may be in the
// middle of another write. A candidate that does not wait for that begins a new term again and again, and comes to nothing.

// candidateFor is how many election time-outs a candidate waits for votes, at least, and a follower for its leader.
const candidateFor = 3

// flushesOfVote is what a voter has to bring to its disk, one after the other, until it has answered: what it writes just now, its term, whom it
// votes for, and in which term.
const flushesOfVote = 4

// candidacy is how long a candidate waits for votes, at least; raft draws between that and twice as long.
func (p *peers) candidacy() time.Duration {
	return max(candidateFor*p.s.opts.ElectionTimeout, p.s.opts.ElectionTimeout+flushesOfVote*p.flushTakes())
}

// flushTakes is how long the disks take for a write these days, this server's and the other voters' as they said themselves.
func (p *peers) flushTakes() time.Duration {
	return min(max(p.s.dir.FlushTakes(), time.Duration(p.othersFlush.Load())), stalledAfter)
}

// setTimers tells raft its times, if they have changed.
func (p *peers) setTimers() {
	select {
	case <-p.started:
	default:
		return
	}
	p.timing.Lock()
	defer p.timing.Unlock()
	conf := p.s.raft.ReloadableConfig()
	candidacy := p.candidacy()
	patience := candidacy // long enough for another one's first election: it writes three times before it asks for votes
	_, _, seen := p.LeaderSeen()
	switch {
	case p.s.raft.State() == raft.Leader:
		patience = p.s.opts.ElectionTimeout
	case seen == 0: // all may just have begun; who stands first still gets the time that the votes need
		patience = min(candidacy, p.s.opts.ElectionTimeout+flushesOfVote*p.flushTakes())
	}
	if conf.HeartbeatTimeout == patience && conf.ElectionTimeout == candidacy {
		return
	}
	conf.HeartbeatTimeout, conf.ElectionTimeout = patience, candidacy
	if err := p.s.raft.ReloadConfig(conf); err != nil {
		p.s.log.Error("raft does not take its times", "patience", patience, "candidacy", candidacy, "err", err)
	}
}
