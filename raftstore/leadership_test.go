// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Raft's notices of two elections lie in the channel when their reader, which was
// waiting, comes to them: won, lost, won. Only the last one is of now, and by it
// this server leads in the term that it has taken up.
func TestOldNoticesOfLeadership(t *testing.T) {
	ctx := testContext(t)
	s := openSteady(t, 3)[0]
	lead, changed := s.leadership.get()
	if !lead.Leader {
		t.Fatal("the first server does not lead")
	}
	// The reader looks at its term, and passes over one that is not its own.
	come := func() { s.leadership.overtaken <- 0 }
	taken := func(waiting func() int) {
		for waiting() > 0 {
			if ctx.Err() != nil {
				t.Fatal("the notices are not read")
			}
			time.Sleep(time.Millisecond)
		}
	}
	s.leadership.mu.Lock() // so it is late
	come()
	taken(func() int { return len(s.leadership.overtaken) })
	for _, leads := range []bool{true, false, true} {
		s.leadership.notices <- leads
	}
	s.leadership.mu.Unlock()
	taken(func() int { return len(s.leadership.notices) })
	come()
	taken(func() int { return len(s.leadership.overtaken) }) // the reader is done with the others
	select {
	case <-changed:
		now, _ := s.leadership.get()
		t.Errorf("%+v became %+v, although raft never lost it", lead, now)
	default:
	}
	testenv.Check(t, s.CheckTerm(WithTerm(ctx, lead.Term)))
}

// TestReadyOnlyOnceTheLeaderIsKnown: a client whose first request after WaitReady requires a leader is not refused,
// although a read can succeed a moment before the board shows the leader.
func TestReadyOnlyOnceTheLeaderIsKnown(t *testing.T) {
	s := openStore(t, Options{Dir: t.TempDir()})
	s.leader.refreshing.Lock() // as if leaderWatch's goroutine had not run yet
	lead, _ := s.leader.get()
	s.leader.set(leader{})
	early, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	testenv.Fails(t, s.WaitReady(early), "ready while no leader is known")
	s.leader.set(lead)
	s.leader.refreshing.Unlock()
	testenv.Check(t, s.WaitReady(t.Context()))
	testenv.Check(t, s.api.LeaderRequired(t.Context()))
}
