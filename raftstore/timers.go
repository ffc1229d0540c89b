// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Raft has two times of its own, and both depend on what goes on (docs/adr/0015):
//
// The first is how long a follower does without its leader before it stands by itself, between one and two of them, by
// chance. The same number sets the pace of a leader's heartbeats. The voters here look themselves (silence.go), and
// a server that raft makes a candidate beside that either shares the votes with the one whose turn it is or, being
// refused its pre-votes, is missing among those who can stand. So only a leader, and who never had one where disks are
// quick, has it short. A follower's is what is left if the question finds no answer.
//
// The second is how long a candidate waits for votes. A voter has to flush its disk three times before it answers, and
// may be in the middle of another write. A candidate that does not wait for that begins a new term again and again, and
// comes to nothing.

// candidateFor is how many election time-outs a candidate waits for votes, at least, and a follower for its leader.
const candidateFor = 3

// leaseFor is how many election time-outs a leader leads on that no majority answers. Raft sends five to ten heartbeats
// in that time, so with a lease of a second the voters would miss a leader after the loss of two of them.
const leaseFor = 2

// flushesOfVote is what a voter has to bring to its disk, one after the other, until it has answered: what it writes
// just now, its term, whom it votes for, and in which term.
const flushesOfVote = 4

// raftTimers are raft's times, and what they follow from: how long the voters' disks take.
type raftTimers struct {
	*peers
	pace     atomic.Pointer[pace]      // of the other voters' disks, as was last heard
	flushing atomic.Bool               // this server flushes a few bytes, since a leader asks how long that takes
	aside    atomic.Pointer[time.Time] // until then this server makes way for another leader
	setting  sync.Mutex                // held while raft's times are set
}

// candidacy is how long a candidate waits for votes, at least; raft draws between that and twice as long.
func (t *raftTimers) candidacy() time.Duration {
	return max(candidateFor*t.opts.ElectionTimeout, t.opts.ElectionTimeout+flushesOfVote*t.flushDuration())
}

// slowestFlush is as slow as a disk may be for the timers to follow it. A disk that stalled for minutes must not make
// the next election take as long.
const slowestFlush = 3 * time.Second

// flushDuration is how long the disks take for a write these days, this server's and those of the other voters that an
// election needs.
func (t *raftTimers) flushDuration() time.Duration {
	return min(max(t.dir.FlushDuration(), t.pace.Load().withThis), slowestFlush)
}

// pace is how long the other voters' disks take for a write, as they said themselves.
type pace struct {
	withThis    time.Duration // the slowest of those that are a majority together with this server
	withoutThis time.Duration // the slowest of those that are a majority without it and reach one another, or never
}

// never is longer than anything takes, by far.
const never = 1000 * time.Hour

// paceOf is the pace of so many voters, some of which answered. Where too few did for a majority without this server,
// or none of them reaches such a majority, there is none that could do better.
func paceOf(answers []standing, voters int) *pace {
	majority, out := voters/2+1, &pace{withoutThis: never}
	all := flushesOf(answers, nil)
	if n := min(majority-1, len(all)); n > 0 {
		out.withThis = all[n-1]
	}
	for _, a := range answers {
		if flushes := flushesOf(answers, a.Reached); len(flushes) >= majority {
			out.withoutThis = min(out.withoutThis, max(flushes[majority-1], min(a.FlushDuration, slowestFlush)))
		}
	}
	return out
}

// flushesOf returns how long the disks take of those that answered, or of those among them, the quickest first. One
// that stalled minutes ago counts no more than any that is slow.
func flushesOf(answers []standing, among []raft.ServerID) []time.Duration {
	var out []time.Duration
	for _, a := range answers {
		if among == nil || slices.Contains(among, raft.ServerID(a.ID)) {
			out = append(out, min(a.FlushDuration, slowestFlush))
		}
	}
	slices.Sort(out)
	return out
}

// withholds says whether a write has waited for this server's disk for so long that the others are to elect another
// leader: those of them that are the fastest majority would need much less.
func (t *raftTimers) withholds() bool {
	stalled := t.dir.Stalled()
	return stalled > stalledAfter && stalled > fasterBy*min(t.pace.Load().withoutThis, slowestFlush) || t.stepsAside()
}

// fasterBy is how many times as fast as this server's disk those of the others have to be for another leader to be
// worth an election, which takes several flushes itself.
const fasterBy = 3

// flushWait is how long a voter that is asked for a flush of now has for it. The answer has to be there within an
// election time-out, over a slow link too.
const flushWait = 50 * time.Millisecond

// question is what this server asks the other voters. A leader that waits for a disk or for confirmations asks for
// flushes since then: where all disks became slow at once, theirs were quick when they flushed last, and they flush
// nothing while they wait for the leader's entries. It asks whom they reach as well: only who reaches enough of the
// quick ones could do better. A candidate, and who misses a leader for longer than an election takes, asks for flushes
// since: a disk that is quick may have stalled a moment ago.
func (e *election) question() (q standingQuestion) {
	switch {
	case e.raft.State() == raft.Leader:
		q.Reach = true
		if q.Within = e.dir.Stalled(); q.Within < stalledAfter/4 {
			q.Within = stuckAfter
		}
	case e.raft.State() == raft.Candidate || e.leaderMissedFor(stalledAfter):
		q.Within = time.Since(e.LeaderHeard())
	}
	return q
}

// flushDurationNow is how long a write takes that began at most so long ago: where there was none, this server flushes
// a few bytes. One that has not ended may be as slow as any.
func (t *raftTimers) flushDurationNow(ctx context.Context, within time.Duration) time.Duration {
	took, ok := t.dir.FlushedWithin(within)
	if took > stalledAfter { // which may be over, and nothing else is written while there is no leader
		_, ok = t.dir.FlushedWithin(min(within, took+stalledAfter))
	}
	if !ok && t.flushing.CompareAndSwap(false, true) {
		t.spawn(func() {
			defer t.flushing.Store(false)
			_ = t.dir.Flush() // one that fails does not count as having ended
		})
	}
	if !ok {
		sleepUnless(ctx, flushWait, func() bool {
			took, ok = t.dir.FlushedWithin(within)
			return ok
		})
	}
	if !ok {
		return slowestFlush
	}
	return max(took, t.dir.Stalled())
}

// compareDisks asks the others, while this server leads and its disk has begun to stall, how theirs do. It waits longer
// for them than who misses a leader: without an answer each leader would be deposed for its slow disk. They wait for
// one another, too.
func (e *election) compareDisks(ctx context.Context) {
	if e.dir.Stalled() > stalledAfter/4 && !e.diskStalled() {
		e.standings(ctx, "", 2*e.opts.ElectionTimeout)
	}
}

// setTimers tells raft its times, if they have changed.
func (t *raftTimers) setTimers() {
	select {
	case <-t.started:
	default:
		return
	}
	t.setting.Lock()
	defer t.setting.Unlock()
	conf := t.raft.ReloadableConfig()
	candidacy := t.candidacy()
	patience := candidacy // long enough for another one's first election: it writes three times before it asks for votes
	_, _, seen := t.LeaderSeen()
	switch {
	case t.raft.State() == raft.Leader:
		patience = leaseFor * t.opts.ElectionTimeout
	case seen == 0: // all may just have begun; who stands first still gets the time that the votes need
		patience = min(candidacy, max(leaseFor*t.opts.ElectionTimeout, t.opts.ElectionTimeout+flushesOfVote*t.flushDuration()))
	}
	if conf.HeartbeatTimeout == patience && conf.ElectionTimeout == candidacy {
		return
	}
	conf.HeartbeatTimeout, conf.ElectionTimeout = patience, candidacy
	if err := t.raft.ReloadConfig(conf); err != nil {
		t.log.Error("raft does not take its times", "patience", patience, "candidacy", candidacy, "err", err)
	}
}
