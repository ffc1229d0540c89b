// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// A leader whose machine has vanished breaks no connection: the voters have to miss it. Raft's own timers take long for
// that. A follower looks at a random moment once in one to two election timeouts, so it misses a leader after one to
// three; and as long as the others have not missed it too, they refuse it even a pre-vote, and it waits for another one
// or two.
//
// So the voters look themselves, and exactly. One that has not heard the leader for silentAfter asks the others at
// once. If a majority says that it is silent, the one with the longest log stands, as if the leader had handed over:
// that way a voter whose own timer has not run out votes too. Raft's timers go on beside that; where a voter knows no
// such question, they are what is left.

// election is how this server misses a leader and becomes a candidate, and answers other voters that miss one.
type election struct {
	*raftTimers
	ended   atomic.Pointer[ended] // the last leader whose process was found to have ended
	stood   atomic.Pointer[stand] // the last one of this server
	polling atomic.Bool           // standing.Polling
	missed  timers.Signal         // another voter misses the leader, or its process has ended
}

// silentAfter and agreeAfter are how long a voter must not have heard the leader before it asks, and before it agrees
// when it is asked: heartbeats reach the voters at different timers. A leader that waits for a processor now and then
// shows that by the gaps between its messages, and is given twice as long as the longest of late; raft's own timers
// come after the most of that. Who leads in a minority may do so for a moment longer than that: nothing relies on its
// lease.
func (e *election) silentAfter() time.Duration {
	timeout := e.opts.ElectionTimeout
	return min(max(timeout*3/2, 2*e.LeaderGap()), timeout*8/3)
}
func (e *election) agreeAfter() time.Duration { return e.silentAfter() - e.opts.ElectionTimeout/3 }

// lateBy is how late this voter may wake up and still trust what it has heard: beyond that it gets too little processor
// time, and messages of the leader may be there unread. It then waits for lateRest, once.
const lateBy, lateRest = 50 * time.Millisecond, 100 * time.Millisecond

// standing is what a voter says of itself when there may be no leader.
type standing struct {
	ID       string
	Silent   time.Duration // since it heard the leader
	Follower bool          // it can stand: it does not already, nor lead, nor wait for pre-votes
	Leads    bool
	Standing bool   // it has begun to, and may still be at it
	Polling  bool   // it asks the others, and becomes a candidate if a majority of them misses the leader
	Ended    bool   // it has found the leader's process to have ended
	Term     uint64 // raft's
	// LogTerm and LogIndex are of its newest entry. Who has less cannot be elected by it.
	LogTerm, LogIndex uint64
	FlushDuration     time.Duration `json:"FlushTakes"` // a write to its disk, lately or up to now
	// VoteFlush is what a write takes now on the disks whose votes it needs, never if too few may vote for it. It is 0
	// until that was measured twice.
	VoteFlush time.Duration `json:",omitempty"`
	// Reached has the ids of the members that it reaches, itself among them, if it was asked for that.
	Reached []raft.ServerID `json:",omitempty"`
}

// standingQuestion is what a voter asks the others.
type standingQuestion struct {
	// Within says that FlushDuration is to be of a write that began at most so long ago.
	Within time.Duration `json:",omitempty"`
	// Reach asks for Reached.
	Reach bool `json:",omitempty"`
}

// reaches says whether a voter's log has all that another one's has, so that it could be elected by it.
func (a standing) reaches(b standing) bool {
	return cmp.Or(cmp.Compare(b.LogTerm, a.LogTerm), cmp.Compare(b.LogIndex, a.LogIndex)) <= 0
}

// ahead says whether a voter comes before another one when both could stand.
func (a standing) ahead(b standing) bool {
	return a.reaches(b) && (!b.reaches(a) || a.ID < b.ID)
}

// settles says whether what a voter answers leaves nothing to be done for the one who asked: there is a leader in its
// term, or an election is under way in which it will be asked for its vote, if it was not just now.
func (a standing) settles(own standing) bool {
	later := a.Term > own.Term && (a.Leads || a.Standing || own.Silent < stalledAfter) // or that one came to nothing
	return later || a.Term == own.Term && a.Leads || a.Standing && a.reaches(own)
}

func (e *election) standing() standing {
	logTerm, _ := strconv.ParseUint(e.raft.Stats()["last_log_term"], 10, 64) // raft wrote it
	state, term := e.raft.State(), e.raft.CurrentTerm()
	out := standing{
		ID: string(e.id), Silent: time.Since(e.LeaderHeard()), Follower: state == raft.Follower, Leads: state == raft.Leader, Term: term,
		Standing: e.stands(state, term), Polling: e.polling.Load(), Ended: e.leaderEnded(),
		LogTerm: logTerm, LogIndex: e.raft.LastIndex(), FlushDuration: max(e.dir.FlushDuration(), e.dir.Stalled()),
	}
	if last := e.stood.Load(); last != nil {
		out.VoteFlush = time.Duration(last.voteFlush.Load())
	}
	return out
}

// serveStanding answers another voter that misses the leader, and has this one look at once.
func (e *election) serveStanding(ctx context.Context, q standingQuestion) (standing, error) {
	if e.diskStalled() {
		return standing{}, errDiskStalled
	}
	e.checkLeaderNow()
	out := e.standing()
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

// checkLeaderNow has missLeader look at once.
func (e *election) checkLeaderNow() { e.missed.Send() }

// misses says whether a voter that says this of itself, or this one, does without the leader.
func (e *election) misses(a standing) bool { return a.Ended || a.Silent >= e.agreeAfter() }

// missesLeader says whether this voter does.
func (e *election) missesLeader() bool {
	return e.misses(standing{Ended: e.leaderEnded(), Silent: time.Since(e.LeaderHeard())})
}

// standings asks the other voters but one how they stand, and returns what came within a time. With only it asks those
// that gave these answers: an unresponsive voter holds up the question until the answers of the others are old.
func (e *election) standings(
	ctx context.Context, but raft.ServerID, within time.Duration, only ...standing,
) []standing {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	question := e.question()
	var mu sync.Mutex
	var all sync.WaitGroup
	var out []standing
	for _, server := range e.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage != raft.Voter || server.ID == e.id || server.ID == but ||
			len(only) > 0 && !slices.ContainsFunc(only, func(a standing) bool { return a.ID == string(server.ID) }) {
			continue
		}
		all.Go(func() {
			answer, err := callAt[standing](ctx, e.Call, string(server.Address), callStanding, question)
			if err != nil || answer.ID != string(server.ID) { // another member may have the address now
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, answer)
		})
	}
	all.Wait()
	switch {
	case len(out) > 0:
		e.pace.Store(paceOf(out, e.voters()))
		e.setTimers()
	case but == "" && len(only) == 0: // all were asked and none answers: none could do better, and an election takes as long as it did
		e.pace.Store(&pace{withThis: e.pace.Load().withThis, withoutThis: never})
	}
	return out
}

// missLeader stands for election when a majority of the voters misses the leader, until ctx is done.
func (e *election) missLeader(ctx context.Context) {
	timer := time.NewTimer(e.silentAfter())
	defer timer.Stop()
	var rest time.Time // until then it does not look again, whatever server asks: each question makes others look, and ask
	tries, due, excused := 0, time.Now().Add(e.silentAfter()), false
	var seen progress // while it leads
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.missed:
		case <-timer.C:
		}
		wait := e.silentAfter() - time.Since(e.LeaderHeard())
		if e.leaderEnded() {
			wait, excused = 0, true
		}
		switch late := time.Since(due) > lateBy; {
		case e.raft.State() == raft.Leader:
			e.compareDisks(ctx)
			e.checkProgress(ctx, &seen)
			rest, tries, excused, wait = time.Time{}, 0, false, e.silentAfter()
			if !e.othersVote() { // and none could lead: nothing to miss, and no server to compare with
				e.pace.Store(&pace{withThis: e.pace.Load().withThis, withoutThis: never})
				rests := timers.Until(stewardTick) // another server may get a vote
				due = time.Now().Add(rests)
				timer.Reset(rests)
				continue
			}
		case wait > 0: // it is there, whatever was before: the next silence is another one
			rest, tries, excused = time.Time{}, 0, false
		case time.Now().Before(rest):
			e.measureVotes(ctx)
			wait = time.Until(rest)
		case late && !excused:
			wait, excused = lateRest, true
		default:
			// Where there is no majority, that may be so for days.
			wait = min(e.replaceLeader(ctx, tries < mostYields)<<max(0, min(tries-doubleAfter, mostDoublings)),
				max(mostRest, e.opts.ElectionTimeout))
			rest = time.Now().Add(wait)
			tries++
		}
		// Who rests looks as often as who does not: a leader that was heard meanwhile may be silent again before the
		// rest is over.
		wait = min(wait, e.silentAfter())
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// The pause between two looks of who misses the leader doubles after some, from a tenth of a second up to mostRest.
const (
	mostRest      = 3 * time.Second
	doubleAfter   = 10
	mostDoublings = 5
)

// mostYields is how often a voter leaves the election to one that is ahead of it and asks the others just now. That one
// may not reach a majority.
const mostYields = 3

// replaceLeader stands for election if it is this voter's turn. It returns how long to wait before looking again. With
// yields it leaves the election to a voter that is ahead of it and asks just now: that one began later, since it waits
// longer for this leader, and would become a candidate at the same time.
func (e *election) replaceLeader(ctx context.Context, yields bool) time.Duration {
	rank, voter := e.rank()
	leader, _, seen := e.LeaderSeen()
	if e.raft.CurrentTerm() > seen {
		leader = "" // there was an election since, so it is asked like any other: it may be a candidate itself
	}
	state := e.raft.State()
	if !voter || state == raft.Leader || state == raft.Shutdown || e.withholds() || e.diskStalled() {
		return standAfter
	}
	if seen == 0 || state != raft.Follower {
		// Raft decides who stands. But it has to know how long the others' disks take: where all have just begun none
		// has said it yet, and one with a good disk would begin a new term each time before the others have brought
		// their votes for the last one to theirs.
		e.standings(ctx, "", standAfter)
		return standAfter
	}
	own := e.standing()
	e.polling.Store(true)
	defer e.polling.Store(false)
	but := leader // who is not asked, as it may not answer
	answers := e.standings(ctx, but, standAfter)
	agreed, ahead, settled := e.tally(ctx, own, answers)
	if !settled && agreed == e.voters()/2 && e.leaderMissedFor(stalledAfter) {
		// One that led, and reached too few, follows by now and can vote.
		but, answers = "", e.standings(ctx, "", standAfter)
		agreed, ahead, settled = e.tally(ctx, own, answers)
	}
	if settled {
		return standAfter
	}
	if agreed <= e.voters()/2 {
		if own.Ended { // the others are about to find that too
			return askAgain
		}
		return standAfter
	}
	if ahead > 0 && !sleepUnless(ctx, time.Duration(ahead)*standAfter, func() bool {
		return e.raft.CurrentTerm() != own.Term || !e.missesLeader()
	}) {
		return standAfter // another one has begun, or the leader is back
	}
	if ahead > 0 && slices.ContainsFunc(e.standings(ctx, but, standAfter, answers...), func(a standing) bool {
		return e.settled(ctx, own, a, answers) || yields && a.Polling && a.Follower && a.ahead(own)
	}) {
		return standAfter // its new term is not on its disk yet
	}
	if e.raft.State() != raft.Follower || e.raft.CurrentTerm() != own.Term || !e.missesLeader() {
		return standAfter
	}
	e.log.Info("a majority misses the store's leader: standing for election", "leader", leader, "ended", own.Ended,
		"silent", own.Silent.Round(time.Millisecond))
	if !e.standNow(ctx) {
		return standAfter
	}
	// An election needs every voter's disk. Standing again before it has come to something would keep it from that.
	return e.candidacy() + time.Duration(rank)*e.opts.ElectionTimeout
}

// tally counts who does without the leader, this server among them, and who of these comes before it. If one of the
// answers leaves nothing to be done, it is settled.
func (e *election) tally(ctx context.Context, own standing, answers []standing) (agreed, ahead int, settled bool) {
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

// settled says whether one of the answers leaves nothing to be done for this server.
func (e *election) settled(ctx context.Context, own, a standing, answers []standing) bool {
	return a.settles(own) && !e.faster(ctx, own, a, answers)
}

// askAgain is how soon a voter asks again whose leader's process has ended, when the others do not say so yet.
const askAgain = 10 * time.Millisecond

// standWithin bounds how long raft may take to hear that this server stands. When its loop is busy for longer, it gives
// another one its vote, and standing after that would depose the winner.
const standWithin = 5 * time.Millisecond

// stand is a candidacy that this server or its raft has begun, or that a leader did which handed over.
type stand struct {
	at        time.Time
	term      uint64        // raft's before
	measured  time.Duration // the newest measurement of measureVotes, which is of missLeader alone
	voteFlush atomic.Int64  // standing.VoteFlush
}

// standNow makes this server a candidate; false says that raft had something else to do.
func (e *election) standNow(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, standWithin)
	defer cancel()
	e.stood.Store(&stand{at: time.Now(), term: e.raft.CurrentTerm()})
	if e.Stand(ctx) {
		return true
	}
	e.stood.Store(nil)
	return false
}

// handedOver notes that a leader makes this server stand. Where its disk is slow, the others miss a leader before they
// are asked for their votes.
func (e *election) handedOver() {
	select {
	case <-e.started:
		e.stood.Store(&stand{at: time.Now(), term: e.raft.CurrentTerm()})
	default:
	}
}

// newTerm notes that raft itself made this server a candidate, if it did: raft is about to save a term. A voter that
// has just given it a vote would stand as well otherwise.
func (e *election) newTerm() {
	select {
	case <-e.started:
		if e.raft.State() == raft.Candidate {
			e.handedOver()
		}
	default:
	}
}

// stands says that this server has begun, or is about to begin, a candidacy that may still be under way, given what
// raft says.
func (e *election) stands(state raft.RaftState, term uint64) bool {
	last := e.stood.Load()
	if last == nil || state == raft.Leader || state == raft.Follower && term > last.term {
		return false
	}
	if _, _, seen := e.LeaderSeen(); seen > last.term { // another one was elected; raft may leave this one a candidate
		return false
	}
	// It brings a term and a vote to the disk first, and then raft draws a time between one and two.
	return time.Since(last.at) < flushesOfVote*e.flushDuration()+2*e.candidacy()
}

// voters is how many servers vote.
func (e *election) voters() int {
	return len(votersOf(e.raft.GetConfiguration().Configuration().Servers))
}

// sleepUnless waits, and returns false as soon as something is so, or when ctx ends.
func sleepUnless(ctx context.Context, d time.Duration, so func() bool) bool {
	const poll = 10 * time.Millisecond
	for until := time.Now().Add(d); time.Now().Before(until); {
		if !timers.Sleep(ctx, poll) || so() {
			return false
		}
	}
	return true
}
