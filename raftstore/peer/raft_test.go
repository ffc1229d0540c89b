// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRaftMessagesArrive(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		if r, err := a.beat(b, 7); err != nil || !r.Success || r.Term != 7 {
			t.Fatalf("%+v, %v", r, err)
		}
		var ar raft.AppendEntriesResponse
		if err := a.AppendEntries(b.id, b.address, a.entries(7, 42), &ar); err != nil || ar.LastLog != 42 {
			t.Fatalf("%+v, %v", ar, err)
		}
		var vr raft.RequestVoteResponse
		if err := a.RequestVote(b.id, b.address, &raft.RequestVoteRequest{RPCHeader: a.header(), Term: 8}, &vr); err != nil || !vr.Granted {
			t.Fatalf("%+v, %v", vr, err)
		}
		var pr raft.RequestPreVoteResponse
		if err := a.RequestPreVote(b.id, b.address, &raft.RequestPreVoteRequest{RPCHeader: a.header(), Term: 8}, &pr); err != nil || !pr.Granted {
			t.Fatalf("%+v, %v", pr, err)
		}
		testenv.NoError(t, a.TimeoutNow(b.id, b.address, &raft.TimeoutNowRequest{RPCHeader: a.header()}, &raft.TimeoutNowResponse{}))
		testenv.NoError(t, a.TimeoutNow(a.id, a.address, &raft.TimeoutNowRequest{RPCHeader: a.header()}, &raft.TimeoutNowResponse{}))
		const size = 9 << 20
		var sr raft.InstallSnapshotResponse
		err := a.InstallSnapshot(b.id, b.address, &raft.InstallSnapshotRequest{RPCHeader: a.header(), Term: 8, Size: size}, &sr, bytes.NewReader(make([]byte, size)))
		testenv.Require(t, err == nil && sr.Success && b.snapshot == size, "%+v, %v, %d bytes", sr, err, b.snapshot)
		if got := b.DecodePeer(a.EncodePeer(a.id, a.address)); got != a.LocalAddr() || got != a.address {
			t.Fatalf("address %q became %q", a.address, got)
		}
		s := a.Peers()
		if len(s) != 1 || s[0].ID != b.id || s[0].Address != b.address || s[0].Failures != 0 || s[0].RTT.Count() == 0 || s[0].BytesSent < size || s[0].BytesReceived == 0 {
			t.Fatalf("%+v", s)
		}
		if c := a.Contact(b.id); c.IsZero() || time.Since(c) > time.Minute {
			t.Fatalf("contact at %v", c)
		}
		a.Retain(nil)
		if s := a.Peers(); len(s) != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestRaftMessagesToWrongServerAreRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.2", nil)
		other := start(t, g, 2, "d.1", func(o *Options) { o.Cluster = "c2" })
		none := start(t, g, 3, "", func(o *Options) { o.Cluster = "" })
		for _, c := range []struct {
			from, to *server
			id       raft.ServerID
			reason   string
		}{
			{a, b, "b.1", "this is not server b.1 but server b.2"},
			{a, other, "d.1", "server a.1 belongs to cluster c1, this is cluster c2"},
			{a, none, "e.1", "this is not server e.1: this server has no identity yet"},
			{none, a, "a.1", "raft needs to know the cluster and both servers"},
			{a, a, "a.1", "server a.1 connected to itself"},
		} {
			_, err := c.from.beat(&server{id: c.id, address: c.to.address}, 1)
			refused, ok := errors.AsType[*RefusedError](err)
			if !ok || refused.Reason != c.reason || refused.Address != string(c.to.address) || refused.ID != string(c.to.id) {
				t.Errorf("%+v instead of %q", err, c.reason)
			} else if !strings.Contains(err.Error(), c.reason) {
				t.Error(err)
			}
		}
		testenv.NoError(t, testenv.Err(a.beat(b, 1))) // by its right name
	})
}

// TestRestartedPeerIsReachedByNewConnections lets a peer go and come back; what pooled connections are left over must
// not be noticed.
func TestRestartedPeerIsReachedByNewConnections(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		for range 3 {
			block := make(chan struct{})
			b.setRespond(func(rpc raft.RPC) { <-block; b.friendly(rpc) })
			done := make(chan error) // two at a time, to fill the pools
			for range 2 {
				go func() {
					_, err := a.beat(b, 1)
					done <- err
				}()
				go func() {
					done <- a.AppendEntries(b.id, b.address, a.entries(1, 5), new(raft.AppendEntriesResponse))
				}()
			}
			close(block)
			for range 4 {
				testenv.NoError(t, <-done)
			}
			testenv.NoError(t, b.Close())
			if _, err := a.beat(b, 1); err == nil {
				t.Fatal("a closed server answered")
			}
			b = start(t, g, 1, "b.1", nil)
			testenv.Must(a.beat(b, 1))(t)
			testenv.NoError(t, a.AppendEntries(b.id, b.address, a.entries(1, 5), new(raft.AppendEntriesResponse)))
			if s := a.Peers()[0]; s.Failures == 0 {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// TestMessagesContinueAfterPeersRestart has the peer restart between two messages.
func TestMessagesContinueAfterPeersRestart(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		for range 5 {
			testenv.Must(a.beat(b, 1))(t)
			testenv.NoError(t, b.Close())
			b = start(t, g, 1, "b.1", nil)
		}
		if s := a.Peers()[0]; s.Failures != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestWithheldMessagesAreNotPeerFailures(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		var stalls atomic.Bool
		a := start(t, g, 0, "a.1", func(o *Options) { o.Withhold = stalls.Load })
		b := start(t, g, 1, "b.1", nil)
		messages := map[string]func() error{
			"heartbeat": func() error { _, err := a.beat(b, 1); return err },
			"entries": func() error {
				return a.AppendEntries(b.id, b.address, a.entries(1, 5), new(raft.AppendEntriesResponse))
			},
			"vote": func() error {
				return a.RequestVote(b.id, b.address, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
			},
			"pre-vote": func() error {
				return a.RequestPreVote(b.id, b.address, &raft.RequestPreVoteRequest{}, &raft.RequestPreVoteResponse{})
			},
			"snapshot": func() error {
				return a.InstallSnapshot(b.id, b.address, &raft.InstallSnapshotRequest{}, &raft.InstallSnapshotResponse{}, strings.NewReader(""))
			},
		}
		for _, on := range []bool{false, true, false} {
			stalls.Store(on)
			for name, send := range messages {
				if err := send(); on != errors.Is(err, ErrWithheld) || !on && err != nil {
					t.Errorf("%s, withheld: %v: %v", name, on, err)
				}
			}
			testenv.Check(t, a.TimeoutNow(b.id, b.address, &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}))
			testenv.Check(t, testenv.Err(b.beat(a, 1))) // it still answers
		}
		if s := a.Peers()[0]; s.Failures != 0 {
			t.Fatalf("what was withheld is counted as the peer's failure: %+v", s)
		}
	})
}

// TestRefusalsConfirmNoEntries passes on what the other side's raft answers, with nothing of earlier answers in it, and
// takes none of it for a confirmation of entries.
func TestRefusalsConfirmNoEntries(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", nil)
		r := raft.AppendEntriesResponse{Term: 1, LastLog: 9, Success: true, NoRetryBackoff: true}
		for _, want := range []raft.AppendEntriesResponse{{Term: 5}, {Term: 6, Success: true}, {Term: 6}, {Term: 4, Success: true}} {
			b.setRespond(func(rpc raft.RPC) { rpc.Respond(&want, nil) })
			for _, request := range []*raft.AppendEntriesRequest{{RPCHeader: a.header(), Term: 5}, a.entries(5, 3)} {
				testenv.NoError(t, a.AppendEntries(b.id, b.address, request, &r))
				testenv.Require(t, r.Term == want.Term && r.Success == want.Success && r.LastLog == 0 && !r.NoRetryBackoff,
					"%+v became %+v", want, r)
			}
		}
		b.setRespond(func(rpc raft.RPC) {
			rpc.Respond(&raft.AppendEntriesResponse{Term: 5, Success: true}, errors.New("but no"))
		})
		if err := a.AppendEntries(b.id, b.address, a.entries(5, 3), &r); err == nil || err.Error() != "but no" {
			t.Fatal(err)
		}
		if n := a.confirmed(b); n != 0 {
			t.Fatalf("they confirm entries up to %d", n)
		}
		if s := a.Peers()[0]; s.Failures != 0 || s.LastContact.IsZero() {
			t.Fatalf("an answer is an answer: %+v", s)
		}
	})
}

func TestHeartbeatReportsLeaderOncePerChange(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b, c := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil), start(t, g, 2, "c.1", nil)
		var changes atomic.Int32
		c.OnLeader(func() { changes.Add(1) })
		check := func(leader *server, term uint64, reports int32) {
			t.Helper()
			id, address, seen := c.LeaderSeen()
			if id != leader.id || address != leader.address || seen != term || changes.Load() != reports {
				t.Fatalf("saw %q at %q in %d, notified %d times", id, address, seen, changes.Load())
			}
		}
		check(&server{}, 0, 0)
		testenv.Must(a.beat(c, 3))(t)
		check(a, 3, 1)
		testenv.Must(a.beat(c, 3))(t)
		check(a, 3, 1)
		testenv.NoError(t, testenv.Err(a.beat(c, 4))) // the same in a new term
		check(a, 4, 2)
		// Raft is stuck; what comes its way is seen all the same.
		stuck := make(chan struct{})
		c.setRespond(func(rpc raft.RPC) { <-stuck; c.friendly(rpc) })
		done := make(chan error)
		go func() {
			done <- b.AppendEntries(c.id, c.address, b.entries(5, 9), new(raft.AppendEntriesResponse))
		}()
		for changes.Load() < 3 {
			time.Sleep(time.Millisecond) // between two looks at a condition
		}
		check(b, 5, 3)
		close(stuck)
		testenv.NoError(t, <-done)
		testenv.NoError(t, testenv.Err(a.beat(c, 4))) // deposed
		check(b, 5, 3)
	})
}
