// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// A candidate hears of the leader of a later term by a heartbeat, and then gets
// the vote for its own, earlier one that makes a majority. It must not take
// that for its election in the later term, where another server leads.
func TestLateVoteWinsNoLaterTerm(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		b, c := start(t, m, 1, "b.1", nil), start(t, m, 2, "c.1", nil)
		votes := make(chan raft.RPC, 1)
		refuse := func(rpc raft.RPC) {
			switch q := rpc.Command.(type) {
			case *raft.RequestVoteRequest:
				rpc.Respond(&raft.RequestVoteResponse{Term: q.Term}, nil)
			case *raft.RequestPreVoteRequest:
				rpc.Respond(&raft.RequestPreVoteResponse{Term: q.Term}, nil)
			default:
				rpc.Respond(&raft.AppendEntriesResponse{}, nil)
			}
		}
		b.setRespond(refuse)
		c.setRespond(func(rpc raft.RPC) {
			if _, ok := rpc.Command.(*raft.RequestVoteRequest); ok {
				votes <- rpc // its answer takes its time
				return
			}
			refuse(rpc)
		})
		a := &node{place: 0}
		a.run(t, m, voters(m, 3))
		defer a.stop(t)
		testenv.Require(t, a.t.StartElection(t.Context()), "it does not stand for election")
		vote := <-votes
		term := vote.Command.(*raft.RequestVoteRequest).Term
		// The others have elected b meanwhile.
		var answer raft.AppendEntriesResponse
		err := b.AppendEntries("a.1", "a", &raft.AppendEntriesRequest{RPCHeader: b.header(), Term: term + 1}, &answer)
		testenv.Require(t, err == nil && answer.Term == term+1, "heartbeat: %+v, %v", answer, err)
		vote.Respond(&raft.RequestVoteResponse{Term: term, Granted: true}, nil)
		for range 50 {
			synctest.Wait()
			if a.State() == raft.Leader {
				t.Fatalf("it leads in term %d, where another was elected", a.CurrentTerm())
			}
			time.Sleep(time.Millisecond) // between two looks at a condition
		}
	})
}

// Raft's main loop waits for a disk. The leader that it follows gets its
// heartbeats answered all the same; others wait until raft can answer.
func TestHeartbeatsPastAHangingDisk(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		blocked := make(chan struct{})
		a := start(t, m, 0, "a.1", nil)
		b := start(t, m, 1, "b.1", func(o *Options) {
			o.Follows = func(leader raft.ServerID, term uint64) bool { return leader == "a.1" && term == 7 }
		})
		b.setRespond(func(rpc raft.RPC) {
			<-blocked
			b.friendly(rpc)
		})
		go func() { _ = a.AppendEntries(b.id, b.address, a.entries(7, 3), &raft.AppendEntriesResponse{}) }()
		synctest.Wait()
		for range 10 {
			began := time.Now()
			if r, err := a.beat(b, 7); err != nil || !r.Success || r.Term != 7 {
				t.Errorf("heartbeat: %+v, %v", r, err)
			}
			if took := time.Since(began); took > 2*busyAfter {
				t.Errorf("it was answered after %v", took)
			}
		}
		if r, err := a.beat(b, 8); err == nil {
			t.Errorf("a heartbeat of another term was answered: %+v", r)
		}
		if _, _, term := b.LeaderSeen(); term != 8 {
			t.Errorf("it was not even seen: the last term is %d", term)
		}
		close(blocked)
		if r, err := a.beat(b, 8); err != nil || !r.Success {
			t.Errorf("heartbeat: %+v, %v", r, err)
		}
	})
}

// A follower's disk stalls for long. Who sends it heartbeats, entries or pre-votes gives up, and tries again; none of
// that stays behind there.
func TestNothingGathersAtAStalledDisk(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		stalls := make(chan struct{})
		var follows atomic.Bool
		a := start(t, m, 0, "a.1", nil)
		b := start(t, m, 1, "b.1", func(o *Options) {
			o.Follows = func(raft.ServerID, uint64) bool { return follows.Load() }
		})
		b.setRespond(func(rpc raft.RPC) {
			<-stalls
			b.friendly(rpc)
		})
		go func() { _ = a.AppendEntries(b.id, b.address, a.entries(7, 3), &raft.AppendEntriesResponse{}) }()
		synctest.Wait()
		beats := func(n int) int {
			for range n {
				if r, err := a.beat(b, 7); err == nil {
					t.Fatalf("a heartbeat was answered: %+v", r)
				}
			}
			time.Sleep(time.Minute) // of the bubble: a call that gives up has done so
			synctest.Wait()
			return runtime.NumGoroutine()
		}
		before := beats(10)
		if after := beats(100); after > before+10 { // of the whole process, whose runtime has some now and then
			t.Errorf("%d goroutines after ten heartbeats, %d after a hundred more", before, after)
		}
		if at := a.Contact(b.id); time.Since(at) < time.Minute {
			t.Errorf("that it is busy counts as contact, %v ago", time.Since(at))
		}
		follows.Store(true) // from now on heartbeats are answered, so that entries are tried again at once
		for what, try := range map[string]func() error{
			"entries": func() error {
				return a.AppendEntries(b.id, b.address, a.entries(7, 4), &raft.AppendEntriesResponse{})
			},
			"pre-votes": func() error {
				return a.RequestPreVote(b.id, b.address, &raft.RequestPreVoteRequest{RPCHeader: a.header(), Term: 8}, &raft.RequestPreVoteResponse{})
			},
		} {
			tries := func(n int) int {
				ctx, cancel := context.WithCancel(t.Context())
				var beating sync.WaitGroup
				beating.Go(func() {
					for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
						testenv.Check(t, testenv.Err(a.beat(b, 7)), "a heartbeat")
					}
				})
				for range n {
					testenv.Require(t, try() != nil, "%s were answered", what)
				}
				cancel()
				beating.Wait()
				time.Sleep(time.Minute)
				synctest.Wait()
				return runtime.NumGoroutine()
			}
			before := tries(5)
			// A few connections are kept for later messages, each with a goroutine.
			if after := tries(40); after > before+10 {
				t.Errorf("%d goroutines after five tries of %s, %d after forty more", before, what, after)
			}
		}
		close(stalls)
	})
}

// A follower that replies is only known to store while it lacks nothing, or confirms one more entry. Calls prove
// nothing of the kind.
func TestFollowerStoresOnlyWhenItLacksNothing(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a := start(t, m, 0, "a.1", nil)
		stalled := false
		b := start(t, m, 1, "b.1", func(o *Options) {
			o.Handle = func(context.Context, string, string, []byte) ([]byte, error) { return nil, nil }
		})
		b.setRespond(func(rpc raft.RPC) {
			if m, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && stalled && len(m.Entries) > 0 {
				rpc.Respond(nil, errBusy)
				return
			}
			b.friendly(rpc)
		})
		stored := func(what string, wantIndex uint64, wantAgo time.Duration) {
			t.Helper()
			index, at := a.Stored(b.id, 7)
			if ago := time.Since(at).Round(time.Second); index != wantIndex || at.IsZero() != (wantAgo < 0) || wantAgo >= 0 && ago != wantAgo {
				t.Errorf("%s: entry %d, %v ago", what, index, ago)
			}
		}
		beat := func() {
			t.Helper()
			testenv.Check(t, testenv.Err(a.beat(b, 7)))
		}
		append := func(index uint64) error {
			return a.AppendEntries(b.id, b.address, a.entries(7, index), &raft.AppendEntriesResponse{})
		}
		beat()
		stored("it has confirmed nothing", 0, -1)
		testenv.NoError(t, append(3))
		stored("it has confirmed an entry", 3, 0)
		time.Sleep(5 * time.Second) // fake time
		stored("nothing was sent to it", 3, 5*time.Second)
		beat()
		stored("it replied, and lacks nothing", 3, 0)
		stalled = true
		go func() { _ = append(4) }() // it is tried again while it is busy
		time.Sleep(time.Second)
		beat()
		testenv.Check(t, testenv.Err(a.Call(t.Context(), string(b.address), "x", nil)))
		stored("it replied, and lacks an entry", 3, time.Second)
		a.Committed(7, 9)
		if index, at := a.Stored(b.id, 8); index != 0 || !at.IsZero() {
			t.Errorf("in a term in which it got nothing: %d, %v", index, at)
		}
	})
}
