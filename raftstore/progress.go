// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"time"
)

// A leader keeps its office by heartbeats, which are small. Where what it has to replicate does not get through to the others, as where a router on
// its way drops packets above some size, it would lead on for ever and nothing would be written. So it looks whether its entries are committed.

const (
	// stuckAfter is how long a leader's entries may wait for a majority before it makes way. After each time that this was in vain it is twice as
	// long, up to mostStuck: what keeps the entries back may be the same for any leader.
	stuckAfter = 3 * time.Second
	mostStuck  = 5 * time.Minute
	// asideFor is how long a leader that makes way holds back the messages that keep or win leadership: its lease has to end, and the others have to
	// miss it and to elect another.
	asideFor = 3 * time.Second
)

// progress is what a leader has seen of its entries.
type progress struct {
	term, commit uint64
	since        time.Time     // since when that has been committed, and there was more
	patience     time.Duration // before it makes way, if not stuckAfter
}

// lookAtProgress makes way if this server leads, and has committed nothing for long that it could have, and others could do it.
func (p *peers) lookAtProgress(ctx context.Context, seen *progress) {
	term, commit, last, now := p.s.raft.CurrentTerm(), p.s.raft.CommitIndex(), p.s.raft.LastIndex(), time.Now()
	if term == seen.term && commit > seen.commit {
		seen.patience = 0
	}
	if term != seen.term || commit != seen.commit || commit >= last {
		seen.term, seen.commit, seen.since = term, commit, now
		return
	}
	waited, patience := now.Sub(seen.since), max(seen.patience, stuckAfter)
	if waited < patience || p.withholds() {
		return
	}
	// Those who write to a slow disk just now, or do not answer, would do no better.
	if p.standings(ctx, "", p.s.opts.ElectionTimeout); waited < fasterBy*p.pace.Load().withoutThis {
		return
	}
	p.s.log.Warn("what this server has to replicate does not reach a majority, though its heartbeats do: another server is to lead the store", "for", waited.Round(time.Millisecond))
	seen.patience = min(2*patience, mostStuck)
	until := now.Add(asideFor)
	p.aside.Store(&until)
}

// stepsAside says whether this server makes way for another leader.
func (p *peers) stepsAside() bool {
	until := p.aside.Load()
	return until != nil && time.Now().Before(*until)
}
