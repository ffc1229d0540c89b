// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// A leader whose machine is gone closes no connection, so the voters have to miss its messages. Raft's own timers are
// slow at that. A follower checks at random intervals of one to two election timeouts, so it misses a leader after one
// to three of them. Until the others miss the leader too, they refuse a candidate even its pre-votes, and it waits for
// another one or two timeouts.
//
// So the voters check in addition, and at exact times. A voter that has not heard the leader for missAfter asks the
// others at once. If a majority has not heard it either, the voter with the longest log becomes a candidate, as in
// a leadership transfer: then voters whose own timers have not run out vote too. Raft's timers still run, for the case
// that a voter's version does not know that question.

// election lets this server notice that its leader is missing, and become a candidate. It also answers other voters
// that miss the leader.
type election struct {
	*raftTimeouts
	leader        *leaderBoard
	ended         atomic.Pointer[ended]     // the last leader whose process was found to have ended
	lastCandidacy atomic.Pointer[candidacy] // the last candidacy of this server
	polling       atomic.Bool               // the value of electionState.Polling
	verifying     atomic.Bool               // a goroutine calls the leader, since a call got no answer
	// recalling says that a goroutine calls a server that gave no answer when it led.
	recalling atomic.Bool
	missed    timers.Signal // sent when another voter misses the leader, or the leader has ended or gives no answer
}

// missAfter is how long a voter must not have heard the leader before it asks the others. agreeAfter is how long it
// must not have heard the leader to agree when it is asked. It is shorter, since heartbeats reach the voters at
// different times. A leader that has to wait for a processor now and then shows that by gaps between its messages. It
// gets twice the longest recent gap, up to a limit at which raft's own timers have not run out yet. A leader in a
// minority may lead for a moment longer than missAfter. That is safe, since nothing relies on its lease.
func (e *election) missAfter() time.Duration {
	timeout := e.opts.ElectionTimeout
	return min(max(timeout*3/2, 2*e.LeaderGap()), timeout*8/3)
}
func (e *election) agreeAfter() time.Duration { return e.missAfter() - e.opts.ElectionTimeout/3 }

// wakeDelayLimit is how late this voter may wake up and still trust the time of the leader's last message. If it wakes
// up later, it gets too little processor time, and messages of the leader may not have been read yet. It then waits for
// wakeDelayPause, once.
const wakeDelayLimit, wakeDelayPause = 50 * time.Millisecond, 100 * time.Millisecond

// electionState is a voter's answer about itself when there may be no leader.
type electionState struct {
	ID           string
	SinceContact time.Duration `json:"Silent"` // time since it heard the leader
	Follower     bool          // it can become a candidate: it is none yet, does not lead, and waits for no pre-votes
	Leads        bool
	Candidate    bool `json:"Standing"` // it has begun a candidacy, which may still be under way
	Polling      bool // it asks the others, and becomes a candidate if a majority of them misses the leader
	Ended        bool // it has found the leader's process to have ended
	// Unanswered says that the leader gives no answer to its calls. AskerUnanswered says that the server that asks led
	// when its calls to that one got no answer, and none has got one since.
	Unanswered, AskerUnanswered bool   `json:",omitempty"`
	Term                        uint64 // raft's term
	// LogTerm and LogIndex are those of its newest entry. It votes for no server whose log ends earlier.
	LogTerm, LogIndex uint64
	FlushDuration     time.Duration `json:"FlushTakes"` // of a recent write to its disk, or of the one under way if that takes longer
	// VoteFlush is how long a write takes now on the disks whose votes it needs, or never if too few servers may vote
	// for it. It is 0 until it was measured twice.
	VoteFlush time.Duration `json:",omitempty"`
	// ClockOff says that its clock is off from those of a majority.
	ClockOff bool `json:",omitempty"`
	// Reached has the ids of the members that the voter reaches, including its own, if the question asked for them.
	Reached []raft.ServerID `json:",omitempty"`
}

// electionStateRequest is a voter's question to the others.
type electionStateRequest struct {
	// Within limits FlushDuration to writes that began at most so long ago.
	Within time.Duration `json:",omitempty"`
	// Reach asks for Reached.
	Reach bool `json:",omitempty"`
	// Calls asks the voter to call that leader before it answers.
	Calls *leaderCall `json:",omitempty"`
	// Address is that of the server that asks.
	Address raft.ServerAddress `json:",omitempty"`
}

// reaches says whether voter a's log has all entries that b's log has, so that b could vote for a.
func (a electionState) reaches(b electionState) bool {
	return cmp.Or(cmp.Compare(b.LogTerm, a.LogTerm), cmp.Compare(b.LogIndex, a.LogIndex)) <= 0
}

// ahead says whether a has precedence over b when both could become candidates.
func (a electionState) ahead(b electionState) bool {
	return a.reaches(b) && (!b.reaches(a) || !a.ClockOff && b.ClockOff || a.ClockOff == b.ClockOff && a.ID < b.ID)
}

// settles says whether the answer a leaves nothing to do for the voter that asked. That is so if a leader exists in
// that voter's term. It is also so if an election is under way in which that voter will be asked for its vote, unless
// it just was.
func (a electionState) settles(own electionState) bool {
	later := a.Term > own.Term && (a.Leads || a.Candidate || own.SinceContact < stalledAfter) // otherwise that term's election has failed
	return later || a.Term == own.Term && a.Leads || a.Candidate && a.reaches(own)
}

func (e *election) ownState() electionState {
	logTerm, _ := strconv.ParseUint(e.raft.Stats()["last_log_term"], 10, 64) // raft wrote it
	state, term := e.raft.State(), e.raft.CurrentTerm()
	out := electionState{
		ID: string(e.id), SinceContact: time.Since(e.LeaderContact()), Term: term,
		Follower: state == raft.Follower, Leads: state == raft.Leader,
		Candidate: e.candidacyPending(state, term), Polling: e.polling.Load(), Ended: e.leaderEnded(),
		Unanswered: e.unanswered(),
		LogTerm:    logTerm, LogIndex: e.raft.LastIndex(), FlushDuration: max(e.dir.FlushDuration(), e.dir.Stalled()),
		ClockOff: e.clockOff.is(),
	}
	if last := e.lastCandidacy.Load(); last != nil {
		out.VoteFlush = time.Duration(last.voteFlush.Load())
	}
	return out
}

// serveElectionState answers another voter that misses the leader. It also makes this voter check at once.
func (e *election) serveElectionState(ctx context.Context, q electionStateRequest) (electionState, error) {
	if e.diskStalled() {
		return electionState{}, errDiskStalled
	}
	if q.Calls != nil {
		e.serveLeaderCall(*q.Calls)
	}
	e.checkLeaderNow()
	out := e.ownState()
	out.AskerUnanswered = e.askerUnanswered(q.Address)
	if q.Within > 0 {
		out.FlushDuration = e.flushDurationNow(ctx, q.Within)
	}
	if q.Reach {
		ctx, cancel := context.WithTimeout(ctx, e.opts.ElectionTimeout)
		defer cancel()
		out.Reached = e.reached(ctx, nil)
	}
	return out, nil
}

// checkLeaderNow makes monitorLeader check at once.
func (e *election) checkLeaderNow() { e.missed.Send() }

// misses says whether the voter that gave the answer a, or this one, misses the leader.
func (e *election) misses(a electionState) bool {
	return a.Ended || a.Unanswered || a.SinceContact >= e.agreeAfter()
}

// missesLeader says whether this voter misses the leader.
func (e *election) missesLeader() bool {
	return e.misses(electionState{Ended: e.leaderEnded(), Unanswered: e.unanswered(), SinceContact: time.Since(e.LeaderContact())})
}

// pollVoters asks the other voters, except one, for their election state. It returns the answers that arrive in time.
// With only, it asks only the voters that gave these answers before: an unresponsive voter delays the result until the
// answers of the others are old.
func (e *election) pollVoters(
	ctx context.Context, except raft.ServerID, within time.Duration, only ...electionState,
) []electionState {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	question := e.question()
	asked := slices.DeleteFunc(e.withoutSelf(votersOf(e.raft.GetConfiguration().Configuration().Servers)), func(v raft.Server) bool {
		return v.ID == except ||
			len(only) > 0 && !slices.ContainsFunc(only, func(a electionState) bool { return a.ID == string(v.ID) })
	})
	out := askMembers(ctx, asked, func(ctx context.Context, v raft.Server) (electionState, bool) {
		answer, err := callAt[electionState](ctx, e.Call, string(v.Address), callElectionState, question)
		return answer, err == nil && answer.ID == string(v.ID) // another member may have this address now
	}, nil)
	switch {
	case len(out) > 0:
		e.pace.Store(paceOf(out, e.voters()))
		e.setTimeouts()
	case except == "" && len(only) == 0: // all were asked and none answered: none could do better, and an election takes as long as before
		e.pace.Store(&pace{withThis: e.pace.Load().withThis, withoutThis: never})
	}
	return out
}

// monitorLeader makes this server a candidate when a majority of the voters misses the leader. It runs until ctx is
// done.
func (e *election) monitorLeader(ctx context.Context) {
	timer := time.NewTimer(e.missAfter())
	defer timer.Stop()
	var pauseUntil time.Time // until then it does not ask again, even if it is asked: each question makes others check, and ask
	tries, due, delayed := 0, time.Now().Add(e.missAfter()), false
	var seen progress // while this server leads
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.missed:
		case <-timer.C:
		}
		wait := e.missAfter() - time.Since(e.LeaderContact())
		if e.leaderEnded() || e.unanswered() {
			wait, delayed = 0, true
		}
		switch late := time.Since(due) > wakeDelayLimit; {
		case e.raft.State() == raft.Leader:
			e.compareDisks(ctx)
			e.checkProgress(ctx, &seen)
			pauseUntil, tries, delayed, wait = time.Time{}, 0, false, e.missAfter()
			if !e.othersVote() { // nor could another server lead: there is no leader to miss, and no disk to compare with
				e.pace.Store(&pace{withThis: e.pace.Load().withThis, withoutThis: never})
				wait = timers.Until(stewardTick) // another server may get a vote
				due = time.Now().Add(wait)
				timer.Reset(wait)
				continue
			}
		case wait > 0: // the leader was heard, so the count of attempts begins again
			pauseUntil, tries, delayed = time.Time{}, 0, false
		case time.Now().Before(pauseUntil):
			e.measureVotes(ctx)
			wait = time.Until(pauseUntil)
		case late && !delayed:
			wait, delayed = wakeDelayPause, true
		default:
			// A majority may be missing for days, so the pause grows.
			wait = min(e.replaceLeader(ctx, tries < maxYields)<<max(0, min(tries-doubleAfter, maxDoublings)),
				max(maxPause, e.opts.ElectionTimeout))
			pauseUntil = time.Now().Add(wait)
			tries++
		}
		// It checks as often during a pause: a leader that was heard in the meantime may be missed again before the
		// pause is over.
		wait = min(wait, e.missAfter())
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// The pause between two attempts to replace the leader doubles after doubleAfter of them, from a tenth of a second up
// to maxPause.
const (
	maxPause     = 3 * time.Second
	doubleAfter  = 10
	maxDoublings = 5
)

// maxYields is how many times a voter leaves the election to another one that is ahead of it and is asking the others
// just then. That voter may not reach a majority.
const maxYields = 3

// replaceLeader makes this server a candidate if it is this voter's turn. It returns how long to wait before the next
// check. With yields it leaves the election to a voter that is ahead of it and is asking the others just then. That
// voter began later, since it waits longer for this leader, and would become a candidate at the same time.
func (e *election) replaceLeader(ctx context.Context, yields bool) time.Duration {
	rank, voter := e.rank()
	leader, _, term := e.LeaderSeen()
	if e.raft.CurrentTerm() > term {
		leader = "" // an election has taken place since, so the old leader is asked like any other: it may be a candidate itself
	}
	state := e.raft.State()
	if !voter || state == raft.Leader || state == raft.Shutdown || e.withholds() || e.diskStalled() {
		return candidacyDelay
	}
	if term == 0 || state != raft.Follower {
		// Raft decides who becomes a candidate here. But it needs to know how long the other voters' disks take. Right
		// after a start none has said so yet. A server with a fast disk would then begin a new term each time before
		// the others have stored their votes for the last one.
		e.pollVoters(ctx, "", candidacyDelay)
		return candidacyDelay
	}
	own := e.ownState()
	e.polling.Store(true)
	defer e.polling.Store(false)
	except := leader // not asked, as it may not answer
	answers := e.pollVoters(ctx, except, candidacyDelay)
	agreed, ahead, settled := e.tally(ctx, own, answers)
	if !settled && agreed == e.voters()/2 && e.leaderMissedFor(stalledAfter) {
		// A former leader that reached too few voters follows by now and can vote.
		except, answers = "", e.pollVoters(ctx, "", candidacyDelay)
		agreed, ahead, settled = e.tally(ctx, own, answers)
	}
	if settled || e.unfit(answers) {
		return candidacyDelay
	}
	if agreed <= e.voters()/2 {
		if own.Ended { // the others are about to notice that too
			return repollAfter
		}
		return candidacyDelay
	}
	if ahead > 0 && !sleepUnless(ctx, time.Duration(ahead)*candidacyDelay, func() bool {
		return e.raft.CurrentTerm() != own.Term || !e.missesLeader()
	}) {
		return candidacyDelay // another voter has begun an election, or the leader is back
	}
	if ahead > 0 && slices.ContainsFunc(e.pollVoters(ctx, except, candidacyDelay, answers...), func(a electionState) bool {
		return e.settled(ctx, own, a, answers) || yields && a.Polling && a.Follower && a.ahead(own)
	}) {
		return candidacyDelay // another voter has begun an election, though its new term is not on its disk yet
	}
	if e.raft.State() != raft.Follower || e.raft.CurrentTerm() != own.Term || !e.missesLeader() {
		return candidacyDelay
	}
	e.log.Info("a majority has no contact with the store's leader: starting an election", "leader", leader, "ended", own.Ended,
		"unanswered", own.Unanswered, "since contact", own.SinceContact.Round(time.Millisecond))
	if !e.startElection(ctx) {
		return candidacyDelay
	}
	// An election needs every voter's disk. If this server became one again before the election has ended, it would
	// hinder it.
	return e.voteTimeout() + time.Duration(rank)*e.opts.ElectionTimeout
}

// tally counts the voters that miss the leader, including this server (agreed), and those of them that are ahead of
// this server. settled is true if one of the answers leaves nothing to do.
func (e *election) tally(ctx context.Context, own electionState, answers []electionState) (agreed, ahead int, settled bool) {
	agreed = 1
	for _, a := range answers {
		if e.settled(ctx, own, a, answers) {
			return 0, 0, true
		}
		if a.Leads || !e.misses(a) {
			continue
		}
		if agreed++; a.Follower && a.ahead(own) {
			ahead++
		}
	}
	return agreed, ahead, false
}

// settled says whether the answer a leaves nothing to do for this server: another one leads, or will be elected soon
// enough.
func (e *election) settled(ctx context.Context, own, a electionState, answers []electionState) bool {
	return a.settles(own) && !e.faster(ctx, own, a, answers)
}

// repollAfter is how soon a voter asks again if its leader's process has ended and the others have not noticed yet.
const repollAfter = 10 * time.Millisecond

// acceptTimeout bounds how long raft may take to accept that this server becomes a candidate. If raft's loop is busy
// for longer, it may be giving another candidate its vote, and a candidacy after that would depose the winner.
const acceptTimeout = 5 * time.Millisecond

// candidacy is a candidacy of this server. It was begun by the server, by its raft, or by a leader that transferred the
// leadership.
type candidacy struct {
	at        time.Time
	term      uint64        // raft's term before
	measured  time.Duration // the newest measurement of measureVotes; only monitorLeader's goroutine uses it
	voteFlush atomic.Int64  // electionState.VoteFlush
}

// startElection makes this server a candidate. It returns false if raft was busy with something else.
func (e *election) startElection(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	e.lastCandidacy.Store(&candidacy{at: time.Now(), term: e.raft.CurrentTerm()})
	if e.StartElection(ctx) {
		return true
	}
	e.lastCandidacy.Store(nil)
	return false
}

// recordTransfer notes that a leader makes this server a candidate, to transfer the leadership. If the disk is slow,
// the other voters miss a leader before they are asked for their votes.
func (e *election) recordTransfer() {
	select {
	case <-e.started:
		e.lastCandidacy.Store(&candidacy{at: time.Now(), term: e.raft.CurrentTerm()})
	default:
	}
}

// newTerm is called when raft is about to save a term. If raft has made this server a candidate, newTerm notes the
// candidacy. Otherwise a voter that has just given this server its vote would become a candidate as well.
func (e *election) newTerm() {
	select {
	case <-e.started:
		if e.raft.State() == raft.Candidate {
			e.recordTransfer()
		}
	default:
	}
}

// candidacyPending says whether a candidacy of this server has begun and may still be under way. state and term are
// raft's.
func (e *election) candidacyPending(state raft.RaftState, term uint64) bool {
	last := e.lastCandidacy.Load()
	if last == nil || state == raft.Leader || state == raft.Follower && term > last.term {
		return false
	}
	if _, _, seen := e.LeaderSeen(); seen > last.term { // another server was elected since; raft may leave this one a candidate
		return false
	}
	// A candidate first stores a term and a vote. Then raft waits for a random time between one and two candidacies.
	return time.Since(last.at) < flushesOfVote*e.flushDuration()+2*e.voteTimeout()
}

// voters returns how many servers have a vote.
func (e *election) voters() int {
	return len(votersOf(e.raft.GetConfiguration().Configuration().Servers))
}

// sleepUnless waits for d. It returns false as soon as so returns true, or when ctx ends.
func sleepUnless(ctx context.Context, d time.Duration, so func() bool) bool {
	const poll = 10 * time.Millisecond
	for until := time.Now().Add(d); time.Now().Before(until); {
		if !timers.Sleep(ctx, poll) || so() {
			return false
		}
	}
	return true
}
