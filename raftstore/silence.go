// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose machine has vanished breaks no connection: the voters have to miss it. Raft's own timers take long for that. A follower looks
// at a random moment once in one to two election timeouts, so it misses a leader after one to three; and as long as the others have not missed
// it too, they refuse it even a pre-vote, and it waits for another one or two.
//
// So the voters look themselves, and exactly. Whoever has not heard the leader for silentAfter asks the others at once. If a majority says
// that it is silent, the one with the longest log stands, as if the leader had handed over: that way a voter whose own timer has not run out
// votes too. Raft's timers go on beside that; where a voter knows no such question, they are what is left.

// silentAfter and agreeAfter are how long a voter must not have heard the leader before it asks, and before it agrees when it is asked: heartbeats
// reach the voters at different moments. Both are longer than a leader's lease (Options.ElectionTimeout), so that a leader that is
// merely cut off has given up by then.
func (p *peers) silentAfter() time.Duration { return p.s.opts.ElectionTimeout * 3 / 2 }
func (p *peers) agreeAfter() time.Duration  { return p.s.opts.ElectionTimeout * 7 / 6 }

// lateBy is how late this voter may wake up and still trust what it has heard: beyond that it gets too little processor time, and
// messages of the leader may be there that nobody has read. It then waits for lateRest, once.
const lateBy, lateRest = 50 * time.Millisecond, 100 * time.Millisecond

// standing is what a voter says of itself when there may be no leader.
type standing struct {
	ID       string
	Silent   time.Duration // since it heard the leader
	Follower bool          // it can stand: it does not already, nor lead, nor wait for pre-votes
	Standing bool          // it has begun to, and may still be at it
	Term     uint64        // raft's
	// LogTerm and LogIndex are of its newest entry. Who has less cannot be elected by it.
	LogTerm, LogIndex uint64
}

// ahead says whether a voter comes before another one when both could stand.
func (a standing) ahead(b standing) bool {
	return cmp.Or(cmp.Compare(b.LogTerm, a.LogTerm), cmp.Compare(b.LogIndex, a.LogIndex), cmp.Compare(a.ID, b.ID)) < 0
}

func (p *peers) standing() standing {
	logTerm, _ := strconv.ParseUint(p.s.raft.Stats()["last_log_term"], 10, 64) // raft wrote it
	return standing{
		ID: string(p.s.id), Silent: time.Since(p.LeaderHeard()), Follower: p.s.raft.State() == raft.Follower, Term: p.s.raft.CurrentTerm(),
		Standing: p.hasStood(),
		LogTerm:  logTerm, LogIndex: p.s.raft.LastIndex(),
	}
}

// serveStanding answers another voter that misses the leader, and has this one look at once.
func (p *peers) serveStanding(context.Context, nothing) (standing, error) {
	if p.s.hung() {
		return standing{}, errHung
	}
	select {
	case p.missed <- struct{}{}:
	default:
	}
	return p.standing(), nil
}

// standings asks the other voters but one how they stand, and returns what came within a time.
func (p *peers) standings(ctx context.Context, but raft.ServerID, within time.Duration) []standing {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	var out []standing
	for _, server := range p.s.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage != raft.Voter || server.ID == p.s.id || server.ID == but {
			continue
		}
		all.Go(func() {
			answer, err := callAt[standing](ctx, p.Transport, string(server.Address), callStanding, nothing{})
			if err != nil {
				return
			}
			answer.ID = string(server.ID)
			mu.Lock()
			defer mu.Unlock()
			out = append(out, answer)
		})
	}
	all.Wait()
	return out
}

// missLeader stands for election when a majority of the voters misses the leader, until ctx is done.
func (p *peers) missLeader(ctx context.Context) {
	timer := time.NewTimer(p.silentAfter())
	defer timer.Stop()
	var rest time.Time // until then it does not look again, whoever asks: each question makes others look, and ask
	tries, due, excused := 0, time.Now().Add(p.silentAfter()), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.missed: // another voter misses it
			if time.Now().Before(rest) {
				continue
			}
		case <-timer.C:
		}
		wait := p.silentAfter() - time.Since(p.LeaderHeard())
		switch late := time.Since(due) > lateBy; {
		case wait > 0:
			tries, excused = 0, false
		case late && !excused:
			wait, excused = lateRest, true
		default:
			// Where there is no majority, that may be so for days.
			wait = min(p.replaceLeader(ctx)<<max(0, min(tries-doubleAfter, mostDoublings)), max(mostRest, p.s.opts.ElectionTimeout))
			rest = time.Now().Add(wait)
			tries++
		}
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

// replaceLeader stands for election if it is this voter's turn. It returns how long to wait before looking again.
func (p *peers) replaceLeader(ctx context.Context) time.Duration {
	if !p.campaigning.CompareAndSwap(false, true) {
		return standAfter // leaderGone has begun
	}
	defer p.campaigning.Store(false)
	rank, voter := p.rank("")
	if _, _, term := p.LeaderSeen(); !voter || term == 0 || p.s.raft.State() != raft.Follower || p.s.hung() {
		return standAfter
	}
	leader, _, _ := p.LeaderSeen()
	own := p.standing()
	answers := p.standings(ctx, leader, standAfter)
	agreed, ahead := 1, 0
	for _, a := range answers {
		if a.Term > own.Term || a.Standing {
			return standAfter // an election is under way: this voter will be asked for its vote, if it was not just now
		}
		if a.Silent < p.agreeAfter() {
			continue
		}
		if agreed++; a.Follower && a.ahead(own) {
			ahead++
		}
	}
	if agreed <= p.voters()/2 {
		return standAfter
	}
	if ahead > 0 && !sleepUnless(ctx, time.Duration(ahead)*standAfter, func() bool {
		return p.s.raft.CurrentTerm() != own.Term || time.Since(p.LeaderHeard()) < p.agreeAfter()
	}) {
		return standAfter // another one has begun, or the leader is back
	}
	if ahead > 0 && slices.ContainsFunc(p.standings(ctx, leader, standAfter), func(a standing) bool { return a.Term > own.Term || a.Standing }) {
		return standAfter // its new term is not on its disk yet
	}
	if p.s.raft.State() != raft.Follower || p.s.raft.CurrentTerm() != own.Term || time.Since(p.LeaderHeard()) < p.agreeAfter() {
		return standAfter
	}
	p.s.log.Info("a majority misses the store's leader: standing for election", "leader", leader, "silent", own.Silent.Round(time.Millisecond))
	if !p.standNow(ctx) {
		return standAfter
	}
	// An election needs every voter's disk. Standing again before it has come to something would keep it from that.
	return p.s.opts.ElectionTimeout * time.Duration(candidateFor+rank)
}

// standWithin bounds how long raft may take to hear that this server stands. When its loop is busy for longer, it gives another one its vote, and
// standing after that would depose the winner.
const standWithin = 5 * time.Millisecond

// standNow makes this server a candidate; false says that raft had something else to do.
func (p *peers) standNow(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, standWithin)
	defer cancel()
	now := time.Now()
	p.stood.Store(&now)
	if p.Stand(ctx) {
		return true
	}
	p.stood.Store(nil)
	return false
}

// hasStood says that this server's candidacy may still be under way.
func (p *peers) hasStood() bool {
	at := p.stood.Load()
	return at != nil && time.Since(*at) < 2*candidateFor*p.s.opts.ElectionTimeout // raft draws a time between one and two
}

// voters is how many servers vote.
func (p *peers) voters() int {
	servers := slices.Clone(p.s.raft.GetConfiguration().Configuration().Servers)
	return len(slices.DeleteFunc(servers, func(s raft.Server) bool { return s.Suffrage != raft.Voter }))
}

// sleepUnless waits, and returns false as soon as something is so, or when ctx ends.
func sleepUnless(ctx context.Context, d time.Duration, so func() bool) bool {
	const look = 10 * time.Millisecond
	for until := time.Now().Add(d); time.Now().Before(until); {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(look):
		}
		if so() {
			return false
		}
	}
	return true
}
