// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/election"
)

// A leader whose heartbeats arrive may be one that no other server can call. Connections that exist go on to carry
// heartbeats after a certificate has ended, behind a firewall that lets no new connection pass, or when the leader's
// process has no file descriptors left. No write and no read of a follower's client is done then.
//
// So a server whose call to the leader found no connection, or got no answer at all, calls the leader again. If that
// gets no answer either, it has the other voters call the leader. Each voter that gets none misses the leader, as if it
// did not hear it (elections.go), and a majority replaces it. An error is an answer, also of a server whose disk
// stalls. While nothing is called there is nothing to notice, and no timer runs.

const (
	// answersWithin is how many election timeouts a leader has to answer a voter that calls it again. A new connection
	// over a link of 80 ms each way takes 640 ms with its handshakes.
	answersWithin = 4
	// maxUnanswered is the longest pause until a leader that gives no answer is called again. The pause begins with
	// election.CandidacyDelay, and doubles.
	maxUnanswered = 3 * time.Second
)

// leaderCall asks a voter to call a leader.
type leaderCall struct {
	ID      raft.ServerID
	Address raft.ServerAddress
	Term    uint64
}

// leaderToCall returns the leader that this server follows, or an empty address if there is none.
func (e *elections) leaderToCall() (l leaderCall) {
	l.ID, l.Address, l.Term = e.LeaderSeen()
	if l.Term == 0 || e.raft.State() == raft.Leader || e.raft.CurrentTerm() > l.Term {
		return leaderCall{}
	}
	return l
}

// unanswered says whether the leader gives no answer to this server's calls.
func (e *elections) unanswered() bool {
	l := e.leaderToCall()
	return l.Address != "" && e.leader.unansweredIn(l.Address) == l.Term
}

// verifyLeader is called when a call to an address has had no answer. If the leader is there, a goroutine calls it
// again.
func (e *elections) verifyLeader(address string) {
	if !e.hasStarted() {
		return
	}
	if l := e.leaderToCall(); l.Address != "" && string(l.Address) == address {
		e.spawnSingle(&e.verifying, e.callLeaderUntilAnswered)
	}
}

// callLeaderUntilAnswered calls the leader and has the others call it, until it answers or there is another one.
func (e *elections) callLeaderUntilAnswered() {
	for pause := election.CandidacyDelay; ; pause = min(2*pause, maxUnanswered) {
		l := e.leaderToCall()
		if l.Address == "" {
			return
		}
		answers := make(chan bool, 1)
		go func() { answers <- e.answers(l) }()
		asks := time.NewTimer(e.opts.ElectionTimeout)
		var asking sync.WaitGroup
		select {
		case <-asks.C: // the others need as long, so they begin meanwhile
			asking.Go(func() { e.haveOthersCall(l) })
			if <-answers {
				asking.Wait()
				return
			}
		case answered := <-answers:
			asks.Stop()
			if answered {
				return
			}
			asking.Go(func() { e.haveOthersCall(l) })
		}
		asking.Wait()
		e.checkLeaderNow()
		if !timers.Sleep(e.ctx, pause) {
			return
		}
	}
}

// answers calls a leader and notes whether it answers. A leader that is not heard either is missed for that, and
// usable as soon as it is heard again.
func (e *elections) answers(l leaderCall) bool {
	ctx, cancel := context.WithTimeout(e.ctx, answersWithin*e.opts.ElectionTimeout)
	defer cancel()
	body, answered := e.Answers(ctx, string(l.Address), callTerm)
	if len(body) > 8 && string(body[8:]) != string(l.ID) { // another member may have this address now
		answered = false
	}
	switch {
	case answered:
		e.leader.noteAnswered(string(l.Address))
	case e.ctx.Err() == nil && time.Since(e.LeaderContact()) < e.timeouts().AgreeAfter():
		e.leader.noteUnanswered(l.Address, l.Term)
	}
	return answered
}

// haveOthersCall has the other voters call a leader. It returns when a majority has done so, or can no longer.
func (e *elections) haveOthersCall(l leaderCall) {
	ctx, cancel := context.WithTimeout(e.ctx, (answersWithin+1)*e.opts.ElectionTimeout)
	defer cancel()
	body, err := json.Marshal(electionStateRequest{Calls: &l})
	if err != nil {
		return
	}
	voters := e.voters()
	askMembers(ctx, e.withoutSelf(voters), func(ctx context.Context, v raft.Server) (reply []byte, ok bool) {
		if v.ID != l.ID {
			_, _ = e.Call(ctx, string(v.Address), callElectionState, body)
		}
		return
	}, nil)
}

// serveLeaderCall calls a leader for another server, if this server follows the same one.
func (e *elections) serveLeaderCall(l leaderCall) {
	if now := e.leaderToCall(); now != l || e.answers(l) {
		return
	}
	e.spawnSingle(&e.verifying, func() {
		// It has just been called, so this begins with the pause.
		if timers.Sleep(e.ctx, election.CandidacyDelay) {
			e.callLeaderUntilAnswered()
		}
	})
}

// askerUnanswered says whether the server that asks gave no answer when it led. If so it is called again, for the next
// time that it asks.
func (e *elections) askerUnanswered(asker raft.ServerAddress) bool {
	if asker == "" {
		return false
	}
	term := e.leader.unansweredIn(asker)
	if term == 0 {
		return false
	}
	for _, server := range e.raft.GetConfiguration().Configuration().Servers {
		if server.Address == asker {
			e.spawnSingle(&e.recalling, func() { e.answers(leaderCall{ID: server.ID, Address: asker, Term: term}) })
		}
	}
	return true
}
