// SPDX-License-Identifier: Apache-2.0

package election

import "time"

// A leader keeps its leadership by heartbeats, which are small. If its entries do not reach the others, for example
// since a router drops packets above some size, it would stay leader although nothing can be written. So a leader
// checks whether the others confirm its entries.

const (
	// StuckAfter is how long a leader's entries may wait for a majority before the leader steps down, in addition to
	// the time that a large entry needs on a slow link. Each time that the leader steps down doubles this, up to
	// maxStuck, since the cause may be the same for any leader. It is StuckAfter again once anything was committed. An
	// entry that no link lets through is dropped when its leader steps down, and small entries are committed in
	// between.
	StuckAfter = 3 * time.Second
	maxStuck   = 5 * time.Minute
)

// Withholds says whether a server withholds the messages that win or keep leadership, since a write has waited for its
// disk for stalled. It does so when another server should lead: the fastest majority of the others would need much less
// time.
func Withholds(stalled time.Duration, others FlushTimes) bool {
	return stalled > StalledAfter && stalled > fasterBy*min(others.Without, SlowestFlush)
}

// Progress is how far a leader's entries were confirmed when it last checked.
type Progress struct {
	Term, Commit uint64
	Confirmed    uint64        // see LeaderCase
	Since        time.Time     // when Confirmed last changed, or there was last nothing to commit
	Timeout      time.Duration // how long to wait before it steps down, if longer than StuckAfter
}

// LeaderCase is all by which a leader decides whether it steps down.
type LeaderCase struct {
	Now                time.Time
	Term, Commit, Last uint64 // raft's term, and the log's newest committed and last index
	// Confirmed is the sum of the indexes up to which the other voters have confirmed the log to this leader. Each
	// counts only up to the next entry to be committed: what a voter confirms beyond that is no progress.
	Confirmed uint64
	Transfer  time.Duration // how much longer than usual the messages under way may take because of a large entry
	Withholds bool
	Polled    bool       // the others have reported Flushes just now
	Flushes   FlushTimes // of the others
	Before    Progress
}

// waitedFor returns how long nothing was confirmed, and how long that may last.
func (c LeaderCase) waitedFor() (waited, timeout time.Duration) {
	return c.Now.Sub(c.Before.Since), max(c.Before.Timeout, StuckAfter)
}

// LeaderAction is what a leader does next.
type LeaderAction int

// A leader's actions.
const (
	Stay     LeaderAction = iota
	Advanced              // stay, and note the progress
	PollAll               // ask the others for their flush times and whom they reach
	StepDown
)

func fixedLeaderAction(a LeaderAction) func(LeaderCase) LeaderAction {
	return func(LeaderCase) LeaderAction { return a }
}

// LeaderRules are the rules of a leader, in order of precedence.
var LeaderRules = []Rule[LeaderCase, LeaderAction]{
	{"progress", func(c LeaderCase) bool {
		return c.Term != c.Before.Term || c.Confirmed != c.Before.Confirmed || c.Commit >= c.Last
	}, fixedLeaderAction(Advanced), "Entries are confirmed, or there are none to confirm."},
	{"not long", func(c LeaderCase) bool {
		waited, timeout := c.waitedFor()
		return waited < timeout+c.Transfer
	}, fixedLeaderAction(Stay), "A large entry takes its time on a narrow link."},
	{"withholds", func(c LeaderCase) bool { return c.Withholds }, fixedLeaderAction(Stay), "It is giving its leadership up already."},
	{"not asked", func(c LeaderCase) bool { return !c.Polled }, fixedLeaderAction(PollAll), "The others may do no better."},
	{"no better leader", func(c LeaderCase) bool {
		waited, _ := c.waitedFor()
		return waited < fasterBy*c.Flushes.Without
	}, fixedLeaderAction(Stay), "Servers that do not answer, or that are writing to a slow disk, would do no better."},
	{"stuck", func(LeaderCase) bool { return true }, fixedLeaderAction(StepDown), "A majority receives heartbeats but confirms no log entries."},
}

// NextOfLeader returns what a leader does next, and the progress that it remembers.
func NextOfLeader(c LeaderCase) (LeaderAction, Progress) {
	if c.Term == c.Before.Term && c.Commit > c.Before.Commit {
		c.Before.Timeout = 0
	}
	_, a := firstRule(LeaderRules, c)
	p := c.Before
	switch a {
	case Advanced:
		p.Term, p.Commit, p.Confirmed, p.Since = c.Term, c.Commit, c.Confirmed, c.Now
	case StepDown:
		_, timeout := c.waitedFor()
		p.Timeout = min(2*timeout, maxStuck)
	}
	return a, p
}
