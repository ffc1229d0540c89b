// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// counter is a state machine that counts its entries.
type counter struct{ n atomic.Int64 }

func (c *counter) Apply(*raft.Log) any                 { return c.n.Add(1) }
func (c *counter) Snapshot() (raft.FSMSnapshot, error) { return count(c.n.Load()), nil }

func (c *counter) Restore(r io.ReadCloser) error {
	var n int64
	_, err := fmt.Fscan(r, &n)
	c.n.Store(n)
	return err
}

type count int64

func (n count) Release() {}

func (n count) Persist(s raft.SnapshotSink) error {
	if _, err := fmt.Fprintln(s, int64(n)); err != nil {
		return err
	}
	return s.Close()
}

// node is a raft server on a transport.
type node struct {
	*raft.Raft
	t     *Transport
	fsm   counter
	store *raft.InmemStore
	snaps raft.SnapshotStore
	place int
}

func (n *node) name() string { return memory{}.place(n.place) }

func (n *node) run(t *testing.T, m memory, bootstrap *raft.Configuration) {
	t.Helper()
	l, address := m.listen(t, n.place)
	var err error
	n.t, err = New(Options{
		Cluster: cluster, ID: address + ".1", Address: address, Listener: l, Dial: m.dial(n.place),
		Logger: slog.New(slog.DiscardHandler), Handle: handle, Timeout: 600 * time.Millisecond,
	})
	testenv.NoError(t, err)
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(address + ".1")
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 150*time.Millisecond
	c.Logger = hclog.NewNullLogger()
	c.TrailingLogs = 1
	if n.store == nil {
		n.store, n.snaps = raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	}
	if bootstrap != nil {
		testenv.NoError(t, raft.BootstrapCluster(c, n.store, n.store, n.snaps, n.t, *bootstrap))
	}
	n.Raft, err = raft.NewRaft(c, &n.fsm, n.store, n.store, n.snaps, n.t)
	testenv.NoError(t, err)
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	done := n.Shutdown()
	testenv.Check(t, n.t.Close())
	testenv.Check(t, done.Error())
}

// voters is a cluster of the servers at the first places.
func voters(m memory, size int) *raft.Configuration {
	c := new(raft.Configuration)
	for i := range size {
		at := m.place(i)
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(at + ".1"), Address: raft.ServerAddress(at)})
	}
	return c
}

func newCluster(t *testing.T, m memory, size int) []*node {
	t.Helper()
	nodes := make([]*node, size)
	for i := range nodes {
		nodes[i] = &node{place: i}
		nodes[i].run(t, m, voters(m, size))
	}
	return nodes
}

// leaderOf waits for a leader among the nodes that has all their votes' respect.
func leaderOf(t *testing.T, nodes ...*node) *node {
	t.Helper()
	for range 10_000 {
		for _, n := range nodes {
			if n.State() == raft.Leader && n.VerifyLeader().Error() == nil {
				return n
			}
		}
		time.Sleep(time.Millisecond) // between two looks at a condition
	}
	t.Fatal("no leader after ten seconds")
	return nil
}

func others(nodes []*node, not *node) []*node {
	var o []*node
	for _, n := range nodes {
		if n != not {
			o = append(o, n)
		}
	}
	return o
}

func (n *node) apply(t *testing.T, count int) {
	t.Helper()
	for range count {
		testenv.NoError(t, n.Apply([]byte("x"), time.Second).Error())
	}
}

func (n *node) await(t *testing.T, count int64) {
	t.Helper()
	began := time.Now()
	for n.fsm.n.Load() != count {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%s has %d entries of %d after %v", n.name(), n.fsm.n.Load(), count, time.Since(began))
		}
		time.Sleep(time.Millisecond) // between two looks at a condition
	}
}

// TestRaftClusterOverPeerTransport runs hashicorp/raft over it: elections, partitions, crashes, snapshots, and an end
// that leaves nothing.
func TestRaftClusterOverPeerTransport(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		for _, a := range "abc" {
			for _, b := range "abc" {
				m.Delay(string(a), string(b), 200*time.Microsecond, 300*time.Microsecond)
			}
		}
		nodes := newCluster(t, m, 3)
		defer func() {
			for _, n := range nodes {
				n.stop(t)
			}
		}()
		first := leaderOf(t, nodes...)
		first.apply(t, 100)
		for _, n := range nodes {
			n.await(t, 100)
		}

		// Cut off, the leader steps down and another one comes.
		rest := others(nodes, first)
		m.Partition([]string{first.name()}, []string{rest[0].name(), rest[1].name()})
		began := time.Now()
		second := leaderOf(t, rest...)
		t.Logf("another leader %v after the partition", time.Since(began))
		second.apply(t, 100)
		for first.State() == raft.Leader {
			time.Sleep(time.Millisecond) // between two looks at a condition
		}
		began = time.Now()
		m.HealAll()
		first.await(t, 200)
		t.Logf("caught up %v after the partition healed", time.Since(began))

		// A follower that crashed and missed a snapshot gets it.
		leader := leaderOf(t, nodes...)
		down := others(nodes, leader)[0]
		m.Reset(down.name())
		down.stop(t)
		leader.apply(t, 100)
		testenv.NoError(t, leader.Snapshot().Error())
		leader.apply(t, 1)
		began = time.Now()
		down.run(t, m, nil)
		down.await(t, 301)
		t.Logf("caught up %v after a restart", time.Since(began))

		// The leader hands over.
		leader = leaderOf(t, nodes...)
		testenv.NoError(t, leader.LeadershipTransfer().Error())
		leader = leaderOf(t, nodes...)
		leader.apply(t, 1)
		for _, n := range nodes {
			n.await(t, 302)
			if n == leader {
				continue
			}
			if id, address, term := n.t.LeaderSeen(); id != leader.t.id() || address != leader.t.LocalAddr() || term != leader.CurrentTerm() {
				t.Errorf("%s saw %s at %s lead in term %d", n.name(), id, address, term)
			}
		}
	})
}

func (t *Transport) id() raft.ServerID { return raft.ServerID(t.opts.ID) }

// TestCloseUnderWay closes a transport while everything is in use.
func TestCloseUnderWay(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", serving), start(t, g, 1, "b.1", serving)
		stuck := make(chan struct{})
		b.setRespond(func(rpc raft.RPC) { <-stuck; b.friendly(rpc) })
		failed := make(chan error)
		for _, f := range []func() error{
			func() error { _, err := a.beat(b, 1); return err },
			func() error {
				return a.AppendEntries(b.id, b.address, a.entries(1, 3), new(raft.AppendEntriesResponse))
			},
			func() error { _, err := a.Call(t.Context(), string(b.address), "hang", nil); return err },
			func() error { _, err := b.Call(t.Context(), string(a.address), "hang", nil); return err },
		} {
			go func() { failed <- f() }()
		}
		time.Sleep(10 * time.Millisecond) // whatever they have come to
		testenv.NoError(t, a.Close())
		for range 4 {
			testenv.Fails(t, <-failed, "something succeeded over a closed transport")
		}
		close(stuck)
		testenv.Fails(t, testenv.Err(a.beat(b, 1)), "a heartbeat was sent after Close")
		testenv.Fails(t, testenv.Err(a.Call(t.Context(), string(b.address), "echo", nil)), "a call was made after Close")
		a.CloseCalls(string(b.address))
		testenv.NoError(t, a.Close())
	})
}

// TestCloseWithStoppedPeer closes a transport whose peers take nothing any more.
func TestCloseWithStoppedPeer(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", serving)
		testenv.Must(a.Call(t.Context(), string(b.address), "echo", nil))(t)
		m.Partition([]string{"a"}, []string{"b"})
		done := make(chan struct{}, 2)
		go func() { _, _ = a.beat(b, 1); done <- struct{}{} }()
		go func() { _, _ = a.Call(t.Context(), string(b.address), "echo", nil); done <- struct{}{} }()
		synctest.Wait()
		began := time.Now()
		testenv.NoError(t, a.Close())
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Fatalf("closing took %v", took)
		}
		<-done
		<-done
		m.HealAll()
	})
}
