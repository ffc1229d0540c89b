// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/election"
)

// elections carries out what package election decides: it lets this server notice that its leader is missing, become a
// candidate, and step down. It also answers other voters that miss the leader.
type elections struct {
	*raftTimeouts
	leader        *leaderBoard
	exitedLeader  atomic.Pointer[exitedLeader] // the last leader whose process was found to have exited
	lastCandidacy atomic.Pointer[candidacy]    // the last candidacy of this server
	polling       atomic.Bool                  // the value of election.Report.Polling
	verifying     atomic.Bool                  // a goroutine calls the leader, since a call got no answer
	// recalling says that a goroutine calls a server that gave no answer when it led.
	recalling    atomic.Bool
	leaderMissed timers.Signal // sent when another voter misses the leader, or the leader has exited or gives no answer
}

// wakeDelayLimit is how late this voter may wake up and still trust the time of the leader's last message.
const wakeDelayLimit = 50 * time.Millisecond

// electionStateRequest is a voter's question to the others.
type electionStateRequest struct {
	// Within limits FlushDuration to writes that began at most so long ago.
	Within time.Duration `json:",omitempty"`
	// Reach asks the voter to report in Reached which members it reaches.
	Reach bool `json:",omitempty"`
	// Calls asks the voter to call that leader before it answers.
	Calls *leaderCall `json:",omitempty"`
	// Address is the Raft address of the server that asks.
	Address raft.ServerAddress `json:",omitempty"`
}

// exitedLeader is a leader whose process this server has found to have exited.
type exitedLeader struct {
	leader   raft.ServerID
	term     uint64
	exitedAt time.Time
}

// leaderGone is called when a server's process has exited. If that was the leader, the voters need not wait until they
// miss its heartbeats, and this one checks at once. The report may be wrong, if a firewall refuses connections. So a
// majority has to find the same.
func (e *elections) leaderGone(id raft.ServerID) {
	leader, _, term := e.LeaderSeen()
	if leader != id {
		return
	}
	e.exitedLeader.Store(&exitedLeader{leader: id, term: term, exitedAt: time.Now()})
	e.checkLeaderNow()
}

// leaderExited says whether the leader's process has exited. A message that the process sent before may still arrive up
// to election.CandidacyDelay later.
func (e *elections) leaderExited() bool {
	found := e.exitedLeader.Load()
	if found == nil {
		return false
	}
	leader, _, term := e.LeaderSeen()
	return leader == found.leader && term == found.term && e.LeaderContact().Before(found.exitedAt.Add(election.CandidacyDelay))
}

// rank returns this server's position among the voters, by id. It reports false if this server has no vote.
func (e *elections) rank() (int, bool) {
	ids := convert.Slice(e.voters(), func(v raft.Server) raft.ServerID { return v.ID })
	slices.Sort(ids)
	return slices.BinarySearch(ids, e.id)
}

func (e *elections) timeouts() election.Timeouts {
	return election.Timeouts{Election: e.opts.ElectionTimeout, LeaderGap: e.LeaderGap(), Votes: e.voteTimeout()}
}

// report returns this server's report about itself.
func (e *elections) report() election.Report {
	logTerm, _ := strconv.ParseUint(e.raft.Stats()["last_log_term"], 10, 64) // raft wrote it
	state, term := e.raft.State(), e.raft.CurrentTerm()
	out := election.Report{
		ID: string(e.id), SinceContact: time.Since(e.LeaderContact()), Term: term,
		Follower: state == raft.Follower, Leads: state == raft.Leader,
		Candidate: e.candidacyPending(state, term), Polling: e.polling.Load(),
		Exited: e.leaderExited(), Unanswered: e.unanswered(),
		LogTerm: logTerm, LogIndex: e.raft.LastIndex(), FlushDuration: max(e.dir.FlushDuration(), e.dir.Stalled()),
		ClockOff: e.clockOff.isOff(),
	}
	if last := e.lastCandidacy.Load(); last != nil {
		out.VoteFlush = time.Duration(last.voteFlush.Load())
	}
	return out
}

// serveElectionState answers another voter that misses the leader. It also makes this voter check at once.
func (e *elections) serveElectionState(ctx context.Context, q electionStateRequest) (election.Report, error) {
	if e.diskStalled() {
		return election.Report{}, errDiskStalled
	}
	if q.Calls != nil {
		e.serveLeaderCall(*q.Calls)
	}
	e.checkLeaderNow()
	out := e.report()
	out.AskerUnanswered = e.askerUnanswered(q.Address)
	if q.Within > 0 {
		out.FlushDuration = e.flushDurationNow(ctx, q.Within)
	}
	if q.Reach {
		ctx, cancel := context.WithTimeout(ctx, e.opts.ElectionTimeout)
		defer cancel()
		out.Reached = e.reachedMembers(ctx, nil)
	}
	return out, nil
}

// checkLeaderNow makes monitorLeader check at once.
func (e *elections) checkLeaderNow() { e.leaderMissed.Send() }

// pollVoters asks the other voters, except one, for their reports. It returns those that arrive in time. With only, it
// asks only the voters that gave these reports before.
func (e *elections) pollVoters(
	ctx context.Context, except raft.ServerID, within time.Duration, only ...election.Report,
) []election.Report {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	question := e.question()
	asked := slices.DeleteFunc(e.withoutSelf(e.voters()), func(v raft.Server) bool {
		return v.ID == except ||
			len(only) > 0 && !slices.ContainsFunc(only, func(a election.Report) bool { return a.ID == string(v.ID) })
	})
	out := askMembers(ctx, asked, func(ctx context.Context, v raft.Server) (election.Report, bool) {
		answer, err := callAt[election.Report](ctx, e.Call, string(v.Address), callElectionState, question)
		return answer, err == nil && answer.ID == string(v.ID) // another member may have this address now
	}, nil)
	switch {
	case len(out) > 0:
		flushes := election.FlushTimesOf(out, len(e.voters()))
		e.flushes.Store(&flushes)
		e.setTimeouts()
	case except == "" && len(only) == 0: // all were asked and none answered: none could do better, and an election takes as long as before
		e.noBetterDisks()
	}
	return out
}

// noBetterDisks notes that no other server could lead with a faster disk.
func (e *elections) noBetterDisks() {
	e.flushes.Store(&election.FlushTimes{With: e.flushes.Load().With, Without: election.Never})
}

// monitorLeader makes this server a candidate when a majority of the voters misses the leader. It runs until ctx is
// done.
func (e *elections) monitorLeader(ctx context.Context) {
	wait := e.timeouts().MissAfter()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	due := time.Now().Add(wait)
	var memory election.Memory
	var progress election.Progress // while this server leads
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.leaderMissed:
		case <-timer.C:
		}
		wait, memory = e.checkLeader(ctx, memory, &progress, time.Since(due) > wakeDelayLimit)
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// checkLeader does what package election decides, until that is to wait. It returns how long.
func (e *elections) checkLeader(
	ctx context.Context, memory election.Memory, progress *election.Progress, wokeLate bool,
) (time.Duration, election.Memory) {
	defer e.polling.Store(false)
	attempt := election.Attempt{Stage: election.Check}
	var except raft.ServerID // not asked, as it may not answer
	for {
		o := e.observe()
		o.WokeLate = wokeLate
		var action election.Action
		action, memory = election.Next(election.Case{Observation: o, Memory: memory, Attempt: attempt})
		switch wait := action.For; action.Kind {
		case election.Lead:
			e.compareDisks(ctx)
			e.checkProgress(ctx, progress)
			if !e.othersVote() { // nor could another server lead: there is no leader to miss, and no disk to compare with
				e.noBetterDisks()
				return timers.Until(stewardTick), memory // another server may get a vote
			}
			return e.timeouts().MissAfter(), memory
		case election.MeasureVotes:
			e.measureVotes(ctx)
			return min(time.Until(memory.PauseUntil), o.MissAfter()), memory
		case election.PollFlushes:
			e.pollVoters(ctx, "", election.CandidacyDelay)
			attempt.Stage = election.RaftElects
		case election.Wait, election.Pause:
			// It checks as often during a pause: a leader that was heard in the meantime may be missed again before the
			// pause is over.
			return min(wait, o.MissAfter()), memory
		case election.Poll:
			leader, _, term := e.LeaderSeen()
			if o.Term <= term { // otherwise an election has taken place since, and the old leader may be a candidate itself
				except = leader
			}
			attempt.Own = e.report()
			e.polling.Store(true)
			attempt.Stage, attempt.Answers = election.Polled, e.pollVoters(ctx, except, e.answerTimeout(o))
		case election.PollWithLeader:
			attempt.LeaderAsked, attempt.Flush = true, 0
			attempt.Answers = e.pollVoters(ctx, "", e.answerTimeout(o))
		case election.MeasureFlush:
			attempt.Flush = max(e.flushDurationNow(ctx, e.question().Within), time.Nanosecond) // 0 means not measured
		case election.Await:
			sleepUnless(ctx, wait, func() bool { return e.raft.CurrentTerm() != attempt.Own.Term || !e.observe().MissesLeader() })
			attempt.Stage = election.Awaited
		case election.PollAgain:
			attempt.Stage, attempt.Flush = election.Repolled, 0
			attempt.Later = e.pollVoters(ctx, "", e.answerTimeout(o), attempt.Answers...)
		case election.BecomeCandidate:
			e.log.Info("a majority has no contact with the store's leader: starting an election", "leader", except, "exited", attempt.Own.Exited,
				"unanswered", attempt.Own.Unanswered, "since contact", attempt.Own.SinceContact.Round(time.Millisecond))
			if attempt.Stage = election.Refused; e.startElection(ctx) {
				attempt.Stage = election.Begun
			}
		}
		if ctx.Err() != nil {
			return 0, memory
		}
	}
}

// answerTimeout returns how long the other voters have to answer: longer if the leader answers no calls. While its
// heartbeats arrive, raft's own timers make no voter a candidate where messages take too long for this.
func (e *elections) answerTimeout(o election.Observation) time.Duration {
	if o.Unanswered {
		return e.opts.ElectionTimeout
	}
	return election.CandidacyDelay
}

// observe returns what this server knows of its leader and of itself.
func (e *elections) observe() election.Observation {
	state, term, voters := e.raft.State(), e.raft.CurrentTerm(), e.voters()
	rank, voter := e.rank()
	_, _, led := e.LeaderSeen()
	return election.Observation{
		Now: time.Now(), Timeouts: e.timeouts(), Leads: state == raft.Leader, Follower: state == raft.Follower, Term: term,
		Eligible:    voter && state != raft.Shutdown && !e.withholds() && !e.diskStalled(),
		LeaderKnown: led != 0, SinceContact: time.Since(e.LeaderContact()),
		Exited: e.leaderExited(), Unanswered: e.unanswered(), Voters: len(voters), Rank: rank,
	}
}

// stepDownFor is how long a leader that steps down withholds the messages that keep or win leadership. In that time its
// lease has to end, and the others have to miss it and elect another leader.
const stepDownFor = 3 * time.Second

// checkProgress steps down if this server leads, the other voters have confirmed nothing for a while that would help to
// commit an entry, and another server could do better.
func (e *elections) checkProgress(ctx context.Context, progress *election.Progress) {
	c := election.LeaderCase{
		Now: time.Now(), Term: e.raft.CurrentTerm(), Commit: e.raft.CommitIndex(), Last: e.raft.LastIndex(),
		Withholds: e.withholds(), Before: *progress,
	}
	for _, v := range e.voters() {
		newest, _ := e.Stored(v.ID, c.Term)
		c.Confirmed, c.Transfer = c.Confirmed+min(newest, c.Commit+1), max(c.Transfer, e.Transfer(v.ID))
	}
	action, after := election.NextOfLeader(c)
	if action == election.PollAll {
		e.pollVoters(ctx, "", 2*e.opts.ElectionTimeout)
		c.Polled, c.Flushes = true, *e.flushes.Load()
		action, after = election.NextOfLeader(c)
	}
	if action == election.StepDown {
		e.log.Warn("a majority receives this leader's heartbeats but confirms no log entries: another server is to become the leader",
			"for", c.Now.Sub(progress.Since).Round(time.Millisecond))
		until := c.Now.Add(stepDownFor)
		e.steppingDownUntil.Store(&until)
	}
	*progress = after
}

// acceptTimeout bounds how long raft may take to accept that this server becomes a candidate.
const acceptTimeout = 5 * time.Millisecond

// candidacy is a candidacy of this server. It was begun by the server, by its raft, or by a leader that transferred the
// leadership.
type candidacy struct {
	startedAt    time.Time
	term         uint64        // raft's term before
	voteDuration time.Duration // the newest measurement of measureVotes; only monitorLeader's goroutine uses it
	voteFlush    atomic.Int64  // election.Report.VoteFlush
}

// startElection makes this server a candidate. It returns false if raft was busy with something else.
func (e *elections) startElection(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	e.lastCandidacy.Store(&candidacy{startedAt: time.Now(), term: e.raft.CurrentTerm()})
	if e.StartElection(ctx) {
		return true
	}
	e.lastCandidacy.Store(nil)
	return false
}

// recordTransfer notes that a leader makes this server a candidate, to transfer the leadership. If the disk is slow,
// the other voters miss a leader before they are asked for their votes.
func (e *elections) recordTransfer() {
	if e.hasStarted() {
		e.lastCandidacy.Store(&candidacy{startedAt: time.Now(), term: e.raft.CurrentTerm()})
	}
}

// newTerm is called when raft is about to save a term. If raft has made this server a candidate, newTerm notes the
// candidacy. Otherwise a voter that has just given this server its vote would become a candidate as well.
func (e *elections) newTerm() {
	if e.hasStarted() && e.raft.State() == raft.Candidate {
		e.recordTransfer()
	}
}

// candidacyPending says whether a candidacy of this server has begun and may still be under way. state and term are
// raft's.
func (e *elections) candidacyPending(state raft.RaftState, term uint64) bool {
	last := e.lastCandidacy.Load()
	if last == nil || state == raft.Leader || state == raft.Follower && term > last.term {
		return false
	}
	if _, _, seen := e.LeaderSeen(); seen > last.term { // another server was elected since; raft may leave this one a candidate
		return false
	}
	// A candidate first stores a term and a vote. Then raft waits for a random time between one and two of voteTimeout.
	return time.Since(last.startedAt) < flushesOfVote*e.flushDuration()+2*e.voteTimeout()
}

// measureVotes measures election.Report.VoteFlush while this server is a candidate. It takes the smaller of two
// measurements: an answer may be late, and a disk that has not flushed since the leader was heard seems slow the first
// time. A candidate beside this server takes a newer term than this server's. So nothing is measured until that term is
// on this server's disk, unless the disk stalls.
func (e *elections) measureVotes(ctx context.Context) {
	last, own := e.lastCandidacy.Load(), e.report()
	if last == nil || !own.Candidate {
		return
	}
	now := e.dir.Stalled()
	switch {
	case own.Term > last.term:
		now = election.VoteFlush(own, e.pollVoters(ctx, "", election.CandidacyDelay), len(e.voters()))
		if now < election.Never {
			now = max(now, e.flushDurationNow(ctx, e.question().Within))
		}
	case now < election.StalledAfter:
		return
	}
	last.voteFlush.Store(int64(min(now, last.voteDuration)))
	last.voteDuration = now
}

// voters returns the servers that have a vote.
func (r *replica) voters() []raft.Server {
	return votersOf(r.raft.GetConfiguration().Configuration().Servers)
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
