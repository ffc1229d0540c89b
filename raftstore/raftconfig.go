// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/election"
)

// Raft has two timeouts, and both are adapted while it runs (docs/adr/0015):
//
// The first (HeartbeatTimeout) is how long a follower does without its leader before it becomes a candidate: a random
// time between one and two of it. It also sets the interval of a leader's heartbeats. The voters here also check by
// themselves (elections.go). A server that raft makes a candidate in addition shares the votes with the voter whose
// turn it is. If its pre-votes are refused, it cannot become a candidate meanwhile. So the timeout is short only on a
// leader, and, if disks are fast, on a server that never had a leader. A follower's timeout is the fallback if the
// voters' own check fails.
//
// The second (ElectionTimeout) is how long a candidate waits for votes. A voter has to flush its disk three times
// before it answers, and another write may be under way. A candidate that does not wait for that begins one new term
// after the other, and is never elected.

// candidateFor is how many election timeouts a candidate waits for votes at least, and a follower for its leader.
const candidateFor = 3

// leaseFor is how many election timeouts a leader leads on without answers from a majority. Raft sends five to ten
// heartbeats in that time. With a lease of a second, the voters would miss a leader after the loss of two heartbeats.
const leaseFor = 2

// flushesOfVote is how many writes a voter stores, one after the other, until it has answered: the write under way, its
// term, the candidate that it votes for, and the term of that vote.
const flushesOfVote = 4

// raftTimeouts sets raft's timeouts by how long the voters' disks take.
type raftTimeouts struct {
	*peers
	flushes           atomic.Pointer[election.FlushTimes] // of the other voters' disks, as last reported
	flushing          atomic.Bool                         // this server flushes a few bytes, since another voter asks how long that takes
	steppingDownUntil atomic.Pointer[time.Time]           // until then this server steps down for another leader
	setting           sync.Mutex                          // held while raft's timeouts are set
}

// voteTimeout returns how long a candidate waits for votes at least. Raft waits for a random time between that and
// twice as long.
func (t *raftTimeouts) voteTimeout() time.Duration {
	return max(candidateFor*t.opts.ElectionTimeout, t.opts.ElectionTimeout+flushesOfVote*t.flushDuration())
}

// flushDuration returns how long a recent write took on the slowest of these disks: this server's, and those of the
// other voters that an election needs.
func (t *raftTimeouts) flushDuration() time.Duration {
	return min(max(t.dir.FlushDuration(), t.flushes.Load().With), election.SlowestFlush)
}

// withholds says whether this server withholds the messages that win or keep leadership, since its disk stalls or it
// steps down.
func (t *raftTimeouts) withholds() bool {
	return election.Withholds(t.dir.Stalled(), *t.flushes.Load()) || t.steppingDown()
}

// flushWait is how long a voter waits for its flush when another voter asks how long a flush takes now. The answer has
// to arrive within an election timeout, over a slow link too.
const flushWait = 50 * time.Millisecond

// question returns this server's question to the other voters. A leader that waits for a disk or for confirmations asks
// for flushes since it began to wait. If all disks became slow at once, the others' last flushes were fast, and they
// flush nothing while they wait for the leader's entries. The leader also asks which members they reach: only a server
// that reaches enough of the fast ones could do better. A candidate asks for flushes since it last heard the leader, as
// does a voter that has missed the leader for longer than an election takes: a fast disk may have stalled a moment ago.
func (e *elections) question() (q electionStateRequest) {
	q.Address = e.address
	switch {
	case e.raft.State() == raft.Leader:
		q.Reach = true
		if q.Within = e.dir.Stalled(); q.Within < election.StalledAfter/4 {
			q.Within = election.StuckAfter
		}
	case e.raft.State() == raft.Candidate || time.Since(e.LeaderContact()) > election.StalledAfter:
		q.Within = time.Since(e.LeaderContact())
	}
	return q
}

// flushDurationNow returns how long a write took that began at most so long ago. If there was none, this server flushes
// a few bytes. It returns election.SlowestFlush for a flush that does not end within flushWait.
func (t *raftTimeouts) flushDurationNow(ctx context.Context, within time.Duration) time.Duration {
	took, ok := t.dir.FlushedWithin(within)
	if took > election.StalledAfter { // the stall may be over, and nothing else is written while there is no leader
		_, ok = t.dir.FlushedWithin(min(within, took+election.StalledAfter))
	}
	if !ok {
		t.spawnSingle(&t.flushing, func() { _ = t.dir.Flush() }) // a flush that fails does not count as ended
		sleepUnless(ctx, flushWait, func() bool {
			took, ok = t.dir.FlushedWithin(within)
			return ok
		})
	}
	if !ok {
		return election.SlowestFlush
	}
	return max(took, t.dir.Stalled())
}

// steppingDown says whether this server steps down for another leader.
func (t *raftTimeouts) steppingDown() bool {
	until := t.steppingDownUntil.Load()
	return until != nil && time.Now().Before(*until)
}

// compareDisks asks the others for their flush durations, if this server's disk has begun to stall while it leads. It
// waits longer for the answers than a voter that misses its leader: without answers, each leader would be deposed for
// its slow disk. The others have to wait for one another, too.
func (e *elections) compareDisks(ctx context.Context) {
	if e.dir.Stalled() > election.StalledAfter/4 && !e.diskStalled() {
		e.pollVoters(ctx, "", 2*e.opts.ElectionTimeout)
	}
}

// setTimeouts sets raft's timeouts, if they have changed.
func (t *raftTimeouts) setTimeouts() {
	if !t.hasStarted() {
		return
	}
	t.setting.Lock()
	defer t.setting.Unlock()
	conf := t.raft.ReloadableConfig()
	votes := t.voteTimeout()
	leader := votes // long enough for another server's first election, which writes three times before it asks for votes
	_, _, seen := t.LeaderSeen()
	switch {
	case t.raft.State() == raft.Leader:
		leader = leaseFor * t.opts.ElectionTimeout
	case seen == 0: // all may just have started; the first candidate still gets the time that the votes need
		leader = min(votes, max(leaseFor*t.opts.ElectionTimeout, t.opts.ElectionTimeout+flushesOfVote*t.flushDuration()))
	}
	if conf.HeartbeatTimeout == leader && conf.ElectionTimeout == votes {
		return
	}
	conf.HeartbeatTimeout, conf.ElectionTimeout = leader, votes
	if err := t.raft.ReloadConfig(conf); err != nil {
		t.log.Error("raft rejected new timeouts", "leader", leader, "votes", votes, "err", err)
	}
}
