// SPDX-License-Identifier: Apache-2.0

package election

import (
	"slices"
	"time"
)

// A leader whose machine is gone closes no connection, so the voters have to miss its messages. Raft's own timers are
// slow at that. A follower checks at random intervals of one to two election timeouts, so it misses a leader after one
// to three of them. Until the others miss the leader too, they refuse a candidate even its pre-votes, and it waits for
// another one or two timeouts.
//
// So the voters check in addition, and at exact times. A voter that has not heard the leader for MissAfter asks the
// others at once. If a majority has not heard it either, the voter with the longest log becomes a candidate, as in a
// leadership transfer: then voters whose own timers have not run out vote too. Raft's timers still run, for the case
// that a voter's version does not know that question.

const (
	// CandidacyDelay is how long a voter waits, when there is no leader, for each voter ahead of it to become a
	// candidate. It is several times the duration of an election.
	CandidacyDelay = 100 * time.Millisecond
	// repollAfter is how soon a voter asks again if its leader's process has exited and the others have not noticed
	// yet.
	repollAfter = 10 * time.Millisecond
	// wakeDelayPause is how long a voter waits that woke up late.
	wakeDelayPause = 100 * time.Millisecond
	// The pause between two attempts to replace the leader doubles after doubleAfter of them, up to maxPause.
	doubleAfter, maxDoublings = 10, 5
	maxPause                  = 3 * time.Second
	// maxYields is how many times a voter leaves the election to another one that is ahead of it and is asking the
	// others just then. That voter may not reach a majority.
	maxYields = 3
)

// Timeouts are the times that a voter's decisions go by.
type Timeouts struct {
	Election  time.Duration // the configured election timeout
	LeaderGap time.Duration // the longest time between two messages of the leader lately
	Votes     time.Duration // how long a candidate waits for votes at least
}

// MissAfter is how long a voter must not have heard the leader before it asks the others. A leader that has to wait for
// a processor now and then shows that by gaps between its messages. It gets twice the longest recent gap, up to a limit
// at which raft's own timers have not run out yet. A leader in a minority may lead for a moment longer than MissAfter.
// That is safe, since nothing relies on its lease.
func (t Timeouts) MissAfter() time.Duration {
	return min(max(t.Election*3/2, 2*t.LeaderGap), t.Election*8/3)
}

// AgreeAfter is how long a voter must not have heard the leader to agree when it is asked. It is shorter than
// MissAfter, since heartbeats reach the voters at different times.
func (t Timeouts) AgreeAfter() time.Duration { return t.MissAfter() - t.Election/3 }

// Observation is what a voter knows of itself at one moment.
type Observation struct {
	Now time.Time
	Timeouts
	Leads, Follower bool          // raft's state
	Term            uint64        // raft's term
	Eligible        bool          // it has a vote, and its disk is not stalled; see Withholds
	LeaderKnown     bool          // it has heard a leader since it started
	SinceContact    time.Duration // time since it heard the leader
	Exited          bool          // it has found the leader's process to have exited
	Unanswered      bool          // the leader gives no answer to its calls
	// WokeLate says that it woke up so late that it gets too little processor time. Messages of the leader may not have
	// been read yet.
	WokeLate     bool
	Voters, Rank int // the number of voters, and this one's position among them by id
}

// MissesLeader says whether this voter misses the leader.
func (o Observation) MissesLeader() bool {
	return Report{Exited: o.Exited, Unanswered: o.Unanswered, SinceContact: o.SinceContact}.Misses(o.AgreeAfter())
}

// Memory is what a voter remembers from one attempt to replace the leader to the next.
type Memory struct {
	Tries      int
	PauseUntil time.Time // until then it does not ask again, even if it is asked: each question makes others check, and ask
	Delayed    bool      // it has waited for messages that had not been read, or needs not
}

// Stage is how far an attempt to replace the leader has come.
type Stage int

// The stages of an attempt, each with what has happened before it.
const (
	Check      Stage = 1 << iota // nothing: there may be a leader
	RaftElects                   // the voters have reported their flush times
	Polled                       // the voters have answered, in Answers
	Awaited                      // the voters ahead have had their time
	Repolled                     // those that had answered have answered again, in Later
	Begun                        // raft has accepted the candidacy
	Refused                      // raft was busy with something else
)

// Attempt is what a voter has learnt in one attempt to replace the leader.
type Attempt struct {
	Stage          Stage
	Own            Report        // of this server, from before it asked
	Answers, Later []Report      // of the other voters
	LeaderAsked    bool          // Answers may include the leader's; at first it is not asked, as it may not answer
	Flush          time.Duration // how long a write takes on this server's disk now; 0 if not measured
}

// Case is the input of the rules: what the server observes, remembers and has asked.
type Case struct {
	Observation
	Memory
	Attempt
}

// Kind is the kind of an Action.
type Kind int

// The actions.
const (
	Wait            Kind = iota // check again after For
	Lead                        // do a leader's checks
	MeasureVotes                // measure Report.VoteFlush, then check again after For
	Pause                       // the attempt is over; ask again after For at the earliest
	PollFlushes                 // ask all for their flush times
	Poll                        // ask all voters but the leader
	PollWithLeader              // ask all voters
	MeasureFlush                // measure Attempt.Flush
	Await                       // wait for For, or until the term has changed or the leader is back
	PollAgain                   // ask those that have answered: an unresponsive voter delays the result until Answers are old
	BecomeCandidate             // begin a candidacy
)

// Action is what a voter does next.
type Action struct {
	Kind Kind
	For  time.Duration
}

// A Rule is one row of a table of rules. The first one of a table that applies decides.
type Rule[C, A any] struct {
	Name    string
	Applies func(C) bool
	Action  func(C) A
	Reason  string
}

func firstRule[C, A any](rules []Rule[C, A], c C) (Rule[C, A], A) {
	i := slices.IndexFunc(rules, func(r Rule[C, A]) bool { return r.Applies(c) })
	return rules[i], rules[i].Action(c)
}

// Next returns what a voter does next, and what it remembers.
func Next(c Case) (Action, Memory) {
	_, a := firstRule(Rules, c)
	m := c.Memory
	if c.Stage == Check && (c.Exited || c.Unanswered) {
		m.Delayed = true
	}
	switch {
	case a.Kind == Lead, a.Kind == Wait && c.contactLeft() > 0:
		m = Memory{}
	case a.Kind == Wait:
		m.Delayed = true
	case a.Kind == Pause:
		// A majority may be missing for days, so the pause grows.
		a.For = min(a.For<<max(0, min(m.Tries-doubleAfter, maxDoublings)), max(maxPause, c.Election))
		m.PauseUntil = c.Now.Add(a.For)
		m.Tries++
	}
	return a, m
}

// contactLeft returns the time until the leader counts as missing. It is 0 or less if the leader is missing already.
func (c Case) contactLeft() time.Duration {
	if c.Exited || c.Unanswered {
		return 0
	}
	return c.MissAfter() - c.SinceContact
}

// answers returns the answers of the newest poll: Later after a second one, otherwise Answers.
func (c Case) answers() []Report {
	if c.Stage == Repolled {
		return c.Later
	}
	return c.Answers
}

// countAgreed returns how many voters miss the leader, including this server, and how many of these are ahead of it.
func (c Case) countAgreed() (agreed, ahead int) {
	agreed = 1
	for _, a := range c.Answers {
		if a.Leads || !a.Misses(c.AgreeAfter()) {
			continue
		}
		if agreed++; a.Follower && a.isAheadOf(c.Own) {
			ahead++
		}
	}
	return agreed, ahead
}

// mayBeHindered says whether a candidate may wait long for its votes, from a voter that it cannot reach, from a
// candidate of the same term, or from one with a stalled disk that still answers. Where disks stalled a moment ago raft
// waits 12 to 24 s for them. flush is that of this server's disk: this voter would be elected much sooner.
func (c Case) mayBeHindered(candidate Report, flush time.Duration) bool {
	return candidate.Candidate && candidate.Term <= c.Own.Term && candidate.VoteFlush > 0 && c.SinceContact > StalledAfter &&
		candidate.VoteFlush > fasterBy*max(VoteFlush(c.Own, c.Answers, c.Voters), flush)
}

// isResolved says whether an answer leaves nothing to do: another voter leads, or will be elected soon enough.
func (c Case) isResolved() bool {
	return slices.ContainsFunc(c.answers(), func(a Report) bool { return a.leavesNothing(c.Own) && !c.mayBeHindered(a, c.Flush) })
}

// leaderRefused says whether a majority of the voters reports that this server gave no answer as a leader. Then no
// leadership is transferred to it either. If no other voter is elected, raft's own timers make it a candidate.
func (c Case) leaderRefused() bool {
	unanswered := 0
	for _, a := range c.Answers {
		if a.AskerUnanswered {
			unanswered++
		}
	}
	return unanswered > c.Voters/2
}

// inStages returns a condition that holds only in some stages.
func inStages(stages Stage, condition func(Case) bool) func(Case) bool {
	return func(c Case) bool { return c.Stage&stages != 0 && condition(c) }
}

func always(Case) bool { return true }

// fixedAction returns an action that does not depend on the case.
func fixedAction(kind Kind, d time.Duration) func(Case) Action {
	return func(Case) Action { return Action{kind, d} }
}

// Rules are the rules of a voter, in order of precedence.
var Rules = []Rule[Case, Action]{
	{"leads", inStages(Check, func(c Case) bool { return c.Leads }), func(c Case) Action { return Action{Lead, c.MissAfter()} },
		"A leader misses no leader. It may have to step down."},
	{"leader heard", inStages(Check, func(c Case) bool { return c.contactLeft() > 0 }), func(c Case) Action {
		return Action{Wait, c.contactLeft()}
	},
		"There is a leader."},
	{"pause", inStages(Check, func(c Case) bool { return c.Now.Before(c.PauseUntil) }),
		func(c Case) Action { return Action{MeasureVotes, c.PauseUntil.Sub(c.Now)} },
		"An election may be under way. Others go by how long it will take."},
	{"woke up late", inStages(Check, func(c Case) bool { return c.WokeLate && !c.Delayed && !c.Exited && !c.Unanswered }),
		fixedAction(Wait, wakeDelayPause), "Messages of the leader may not have been read yet."},
	{"not eligible", inStages(Check, func(c Case) bool { return !c.Eligible }), fixedAction(Pause, CandidacyDelay),
		"It would not be elected, or could not lead."},
	// Right after a start no voter has reported how long its disk takes. A server with a fast disk would then begin a
	// new term each time before the others have stored their votes for the last one.
	{"raft elects", inStages(Check, func(c Case) bool { return !c.LeaderKnown || !c.Follower }), fixedAction(PollFlushes, 0),
		"Raft decides who becomes a candidate here, and needs to know how long the voters' disks take."},
	{"raft has flush times", inStages(RaftElects, always), fixedAction(Pause, CandidacyDelay), "They may change."},
	{"leader missing", inStages(Check, always), fixedAction(Poll, 0), "A majority has to miss the leader too."},

	{"candidate may be slower", inStages(Polled|Repolled, func(c Case) bool {
		return c.Flush == 0 && slices.ContainsFunc(c.answers(), func(a Report) bool {
			return a.leavesNothing(c.Own) && c.mayBeHindered(a, 0)
		})
	}), fixedAction(MeasureFlush, 0), "A candidate may wait long for its votes. This voter's disk decides whether it would be faster."},
	{"resolved", inStages(Polled|Repolled, Case.isResolved), fixedAction(Pause, CandidacyDelay),
		"Another voter leads or has begun an election, though its new term may not be on its disk yet."},
	{"former leader may vote", inStages(Polled, func(c Case) bool {
		agreed, _ := c.countAgreed()
		return !c.LeaderAsked && agreed == c.Voters/2 && c.SinceContact > StalledAfter
	}), fixedAction(PollWithLeader, 0), "A former leader that reached too few voters follows by now and can vote."},
	{"refused as leader", inStages(Polled, Case.leaderRefused), fixedAction(Pause, CandidacyDelay),
		"A majority got no answer from this server when it led. Another one is to lead."},
	{"no majority yet", inStages(Polled, func(c Case) bool {
		agreed, _ := c.countAgreed()
		return agreed <= c.Voters/2 && c.Own.Exited
	}), fixedAction(Pause, repollAfter), "The others are about to notice that the leader's process has exited."},
	{"no majority", inStages(Polled, func(c Case) bool {
		agreed, _ := c.countAgreed()
		return agreed <= c.Voters/2
	}), fixedAction(Pause, CandidacyDelay), "A majority hears the leader, or too few voters are reached."},
	{"voters ahead", inStages(Polled, func(c Case) bool {
		_, ahead := c.countAgreed()
		return ahead > 0
	}), func(c Case) Action {
		_, ahead := c.countAgreed()
		return Action{Await, time.Duration(ahead) * CandidacyDelay}
	}, "Two candidates would share the votes."},
	{"voter ahead is asking", inStages(Repolled, func(c Case) bool {
		return c.Tries < maxYields && slices.ContainsFunc(c.Later, func(a Report) bool {
			return a.Polling && a.Follower && a.isAheadOf(c.Own)
		})
	}), fixedAction(Pause, CandidacyDelay), "That voter began later, since it waits longer for this leader, and becomes a candidate at the same time."},
	{"overtaken", inStages(Polled|Awaited|Repolled, func(c Case) bool {
		return !c.Follower || c.Term != c.Own.Term || !c.MissesLeader()
	}), fixedAction(Pause, CandidacyDelay), "Another voter has begun an election, or the leader is back."},
	{"voters ahead did nothing", inStages(Awaited, always), fixedAction(PollAgain, 0), "A voter ahead may have begun an election that has not got here."},
	{"turn", inStages(Polled|Repolled, always), fixedAction(BecomeCandidate, 0), "A majority misses the leader, and no voter has precedence."},

	{"candidacy begun", inStages(Begun, always), func(c Case) Action {
		return Action{Pause, c.Votes + time.Duration(c.Rank)*c.Election}
	}, "An election needs every voter's disk. If this server became a candidate again before the election has ended, it would hinder it."},
	{"candidacy not accepted", inStages(Refused, always), fixedAction(Pause, CandidacyDelay),
		"Raft may be giving another candidate its vote. A candidacy after that would depose the winner."},
}
