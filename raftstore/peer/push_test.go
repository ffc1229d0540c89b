// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestCommitIndexIsSent checks which peers are sent the commit index, and when.
func TestCommitIndexIsSent(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		var stalls atomic.Bool
		a := start(t, m, 0, "a.1", func(o *Options) { o.Withhold = stalls.Load })
		b := start(t, m, 1, "b.1", nil)
		requests := make(chan *raft.AppendEntriesRequest, 100)
		b.setRespond(func(rpc raft.RPC) {
			requests <- rpc.Command.(*raft.AppendEntriesRequest)
			b.friendly(rpc)
		})
		entry := func(index uint64) {
			t.Helper()
			r := a.entries(3, index)
			testenv.NoError(t, a.AppendEntries(b.id, b.address, r, new(raft.AppendEntriesResponse)))
			if got := <-requests; len(got.Entries) != 1 || got.Entries[0].Index != index {
				t.Fatalf("%+v", got)
			}
		}
		silence := func() {
			t.Helper()
			synctest.Wait()
			if len(requests) > 0 {
				t.Fatalf("%+v", <-requests)
			}
		}
		commit := func(index uint64) {
			t.Helper()
			got := <-requests
			if len(got.Entries) != 0 || got.Term != 3 || got.PrevLogEntry < index || got.PrevLogTerm != 3 || got.LeaderCommitIndex != index || string(got.ID) != "a.1" {
				t.Fatalf("%+v", got)
			}
			silence()
		}
		a.Committed(3, 4)
		silence() // nothing was sent to anybody yet
		entry(5)
		a.Committed(3, 5)
		commit(5)
		a.Committed(3, 5) // known
		a.Committed(2, 9) // of another term
		a.Committed(4, 9)
		a.Committed(3, 6) // a majority without b has it
		silence()
		entry(6)
		commit(6)
		entry(7)
		stalls.Store(true)
		a.Committed(3, 7)
		silence()
		stalls.Store(false)

		// With more under way, that will tell.
		m.Delay("b", "a", 100*time.Millisecond, 0)
		answered := make(chan error)
		go func() {
			answered <- a.AppendEntries(b.id, b.address, a.entries(3, 8), new(raft.AppendEntriesResponse))
		}()
		<-requests
		a.Committed(3, 8)
		silence()
		testenv.NoError(t, <-answered)
		commit(8)
	})
}

// TestEntriesAreSentWhenPeerReturns has a peer away for a while: entries are sent again when it
// is back, not after what pause raft would make.
func TestEntriesAreSentWhenPeerReturns(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		testenv.NoError(t, b.Close())
		done := make(chan error)
		go func() {
			done <- a.AppendEntries(b.id, b.address, a.entries(1, 5), new(raft.AppendEntriesResponse))
		}()
		for {
			if s := a.Peers(); len(s) == 1 && s[0].Failures > 0 {
				break
			}
			time.Sleep(time.Millisecond) // between two looks at a condition
		}
		time.Sleep(time.Millisecond) // what is heard of b must be later than the failed message, also where time is fake
		b = start(t, g, 1, "b.1", nil)
		testenv.Must(a.beat(b, 1))(t)
		testenv.NoError(t, <-done)
	})
}

// TestOnlyALeadersEndIsReported checks that a leader's end is reported, and nothing else.
func TestOnlyALeadersEndIsReported(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b, c := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil), start(t, g, 2, "c.1", nil)
		lost := make(chan raft.ServerID, 10)
		c.OnLeaderEnd(func(id raft.ServerID) { lost <- id })
		for _, s := range []*server{b, a} { // a leads, b did
			testenv.Must(s.beat(c, map[*server]uint64{b: 1, a: 2}[s]))(t)
		}
		testenv.NoError(t, b.Close())
		a.abortConns(func(k *conn) bool { return k.class == classBeats }) // a lost connection is no end
		for {
			c.Transport.connections.mu.Lock()
			left := len(c.conns)
			c.Transport.connections.mu.Unlock()
			if left == 0 && !c.dialing.Load() {
				break
			}
			time.Sleep(time.Millisecond) // between two looks at a condition
		}
		if len(lost) > 0 {
			t.Fatalf("%s was said to have ended", <-lost)
		}
		testenv.Must(a.beat(c, 2))(t)
		testenv.NoError(t, a.Close())
		if id := <-lost; id != "a.1" {
			t.Fatal(id)
		}
	})
}

// A follower has entries that a former leader left there. A message of the
// present one's that proves only those before them must not commit them,
// whatever raft says in it.
func TestCommitIsProven(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		b, c := start(t, m, 1, "b.1", nil), start(t, m, 2, "c.1", nil)
		a := &node{place: 0}
		a.run(t, m, voters(m, 3))
		defer a.stop(t)
		send := func(from *server, r *raft.AppendEntriesRequest) {
			t.Helper()
			r.RPCHeader = from.header()
			answer := new(raft.AppendEntriesResponse)
			if err := from.AppendEntries("a.1", "a", r, answer); err != nil || !answer.Success {
				t.Fatalf("%+v, %v", answer, err)
			}
		}
		left := &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 1, PrevLogTerm: 1, LeaderCommitIndex: 1}
		for index := uint64(2); index <= 5; index++ {
			left.Entries = append(left.Entries, &raft.Log{Index: index, Term: 2, Type: raft.LogNoop})
		}
		send(b, left)
		send(c, &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 2, PrevLogTerm: 2, LeaderCommitIndex: 9})
		if got := a.CommitIndex(); got != 2 {
			t.Fatalf("it committed up to entry %d, of which the leader proved 2", got)
		}
	})
}
