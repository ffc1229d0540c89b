// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"time"
)

// A leader keeps its office by heartbeats, which are small. Where what it has to replicate does not get through to the
// others, as where a router on its way drops packets above some size, it would lead on for ever and nothing would be
// written. So it looks whether the others confirm its entries.

const (
	// stuckAfter is how long a leader's entries may wait for a majority before it makes way, beside the time that a
	// large one needs on a narrow link. After each time that this failed it is twice as long, up to mostStuck:
	// what keeps the entries back may be the same for any leader. It is stuckAfter again once anything was committed:
	// each leader that makes way drops an entry that gets through nowhere, and small ones get through between.
	stuckAfter = 3 * time.Second
	mostStuck  = 5 * time.Minute
	// asideFor is how long a leader that makes way holds back the messages that keep or win leadership: its lease has
	// to end, and the others have to miss it and to elect another.
	asideFor = 3 * time.Second
)

// progress is what a leader has seen of its entries.
type progress struct {
	term, commit uint64
	confirmed    uint64        // see replicated
	since        time.Time     // since when that has been confirmed, and there was more to commit
	patience     time.Duration // before it makes way, if not stuckAfter
}

// checkProgress makes way if this server leads, the other voters have confirmed nothing for long that it could commit,
// and others could do it.
func (e *election) checkProgress(ctx context.Context, seen *progress) {
	term, commit, last, now := e.raft.CurrentTerm(), e.raft.CommitIndex(), e.raft.LastIndex(), time.Now()
	confirmed, transfer := e.replicated(term, commit)
	if term == seen.term && commit > seen.commit {
		seen.patience = 0
	}
	if term != seen.term || confirmed != seen.confirmed || commit >= last {
		seen.term, seen.commit, seen.confirmed, seen.since = term, commit, confirmed, now
		return
	}
	waited, patience := now.Sub(seen.since), max(seen.patience, stuckAfter)
	if waited < patience+transfer || e.withholds() {
		return
	}
	// Those who write to a slow disk just now, or do not answer, would do no better.
	if e.standings(ctx, "", 2*e.opts.ElectionTimeout); waited < fasterBy*e.pace.Load().withoutThis {
		return
	}
	e.log.Warn("what this server has to replicate does not reach a majority, though its heartbeats do: another server is to lead the store",
		"for", waited.Round(time.Millisecond))
	seen.patience = min(2*patience, mostStuck)
	until := now.Add(asideFor)
	e.aside.Store(&until)
}

// replicated returns the sum of the indexes up to which the other voters have confirmed the log to this leader of a
// term, each up to the entry that is to be committed next: what a voter confirms beyond that one is no progress. It
// also returns how much longer than usual the messages may take that are under way to voters, since they have a large
// entry.
func (e *election) replicated(term, commit uint64) (confirmed uint64, transfer time.Duration) {
	for _, v := range votersOf(e.raft.GetConfiguration().Configuration().Servers) {
		newest, _ := e.Stored(v.ID, term)
		confirmed, transfer = confirmed+min(newest, commit+1), max(transfer, e.Transfer(v.ID))
	}
	return confirmed, transfer
}

// stepsAside says whether this server makes way for another leader.
func (t *raftTimers) stepsAside() bool {
	until := t.aside.Load()
	return until != nil && time.Now().Before(*until)
}
