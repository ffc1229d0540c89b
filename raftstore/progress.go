// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"time"
)

// A leader keeps its leadership by heartbeats, which are small. If its entries do not reach the others, for example
// since a router drops packets above some size, it would stay leader although nothing can be written. So a leader
// checks whether the others confirm its entries.

const (
	// stuckAfter is how long a leader's entries may wait for a majority before the leader makes way, in addition to the
	// time that a large entry needs on a slow link. Each time that the leader makes way doubles this, up to maxStuck,
	// since the cause may be the same for any leader. It is stuckAfter again once anything was committed. An entry that
	// no link lets through is dropped when its leader makes way, and small entries are committed in between.
	stuckAfter = 3 * time.Second
	maxStuck   = 5 * time.Minute
	// stepDownFor is how long a leader that makes way withholds the messages that keep or win leadership. In that time
	// its lease has to end, and the others have to miss it and elect another leader.
	stepDownFor = 3 * time.Second
)

// progress is how far a leader's entries were confirmed when it last checked.
type progress struct {
	term, commit uint64
	confirmed    uint64        // the result of replicated
	since        time.Time     // when confirmed last changed, or there was last nothing to commit
	timeout      time.Duration // how long to wait before it makes way, if longer than stuckAfter
}

// checkProgress makes way if this server leads, the other voters have confirmed nothing for a while that would help to
// commit an entry, and another server could do better.
func (e *election) checkProgress(ctx context.Context, seen *progress) {
	term, commit, last, now := e.raft.CurrentTerm(), e.raft.CommitIndex(), e.raft.LastIndex(), time.Now()
	confirmed, transfer := e.replicated(term, commit)
	if term == seen.term && commit > seen.commit {
		seen.timeout = 0
	}
	if term != seen.term || confirmed != seen.confirmed || commit >= last {
		seen.term, seen.commit, seen.confirmed, seen.since = term, commit, confirmed, now
		return
	}
	waited, timeout := now.Sub(seen.since), max(seen.timeout, stuckAfter)
	if waited < timeout+transfer || e.withholds() {
		return
	}
	// Servers that do not answer, or that are writing to a slow disk, would do no better.
	if e.pollVoters(ctx, "", 2*e.opts.ElectionTimeout); waited < fasterBy*e.pace.Load().withoutThis {
		return
	}
	e.log.Warn("a majority receives this leader's heartbeats but confirms no log entries: another server is to become the leader",
		"for", waited.Round(time.Millisecond))
	seen.timeout = min(2*timeout, maxStuck)
	until := now.Add(stepDownFor)
	e.steppingDownUntil.Store(&until)
}

// replicated returns the sum of the indexes up to which the other voters have confirmed the log to this leader of a
// term. Each counts only up to the next entry to be committed: what a voter confirms beyond that is no progress.
// transfer is how much longer than usual the messages under way may take because of a large entry.
func (e *election) replicated(term, commit uint64) (confirmed uint64, transfer time.Duration) {
	for _, v := range votersOf(e.raft.GetConfiguration().Configuration().Servers) {
		newest, _ := e.Stored(v.ID, term)
		confirmed, transfer = confirmed+min(newest, commit+1), max(transfer, e.Transfer(v.ID))
	}
	return confirmed, transfer
}

// steppingDown says whether this server makes way for another leader.
func (t *raftTimeouts) steppingDown() bool {
	until := t.steppingDownUntil.Load()
	return until != nil && time.Now().Before(*until)
}
