// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestInterruptedFirstStart starts a store whose first start lost power when
// raft had saved its first term and had not yet written its first entry.
func TestInterruptedFirstStart(t *testing.T) {
	path := t.TempDir()
	d := testenv.Must(disk.Open(disk.Options{
		Path: path, Identity: disk.Identity{Node: "one"}, Logger: slog.New(slog.DiscardHandler), Clock: clock.RealClock{},
	}))(t)
	testenv.NoError(t, d.Vars.SetUint64([]byte("CurrentTerm"), 1))
	testenv.NoError(t, d.Close())
	s := openStore(t, Options{Dir: path})
	testenv.Must(s.Client().Put(testContext(t), "/a", "1"))(t)
}

// A server that is to join others must not begin a cluster of its own at its
// next start, be it that it has not found them yet, or that they are not named to
// it any more.
func TestJoiningIsRemembered(t *testing.T) {
	ctx := testContext(t)
	closed := tcpNetwork(t)
	testenv.NoError(t, closed.Listener.Close())
	dir := filepath.Join(t.TempDir(), "store")
	o := Options{Dir: dir, NodeID: "one", ClusterID: "test", Logger: testLog("one")}
	for i, join := range [][]string{{closed.Address}, nil, nil} {
		o.Network, o.Join = tcpNetwork(t), join
		if i == 2 { // a note that is damaged is not used
			testenv.NoError(t, os.Truncate(filepath.Join(dir, "PEERS"), 3))
		}
		s := testenv.Must(Open(ctx, o))(t)
		peersOf(s).membership.savePeers()
		if servers := s.replica.raft.GetConfiguration().Configuration().Servers; len(servers) > 0 {
			t.Errorf("it began a cluster: %v", servers)
		}
		if known := peersOf(s).membership.knownAddresses(); i < 2 && !slices.Equal(known, []string{closed.Address}) {
			t.Errorf("it knows of %v", known)
		}
		testenv.NoError(t, s.Close(ctx))
	}
}

// TestServerWithOtherShareIsNotAdmitted: a server that shares what it should not is not taken in, and is when it shares
// what the leader does. What the leader holds meanwhile is released each time.
func TestServerWithOtherShareIsNotAdmitted(t *testing.T) {
	var mu sync.Mutex
	shared, held, asked := "old", 0, 0
	tune := func(o *Options) {
		o.Share = func() string {
			mu.Lock()
			defer mu.Unlock()
			return shared
		}
		o.Admit = func(share string) (func(), error) {
			mu.Lock()
			defer mu.Unlock()
			if asked++; share != "new" {
				return nil, errors.New("another key")
			}
			held++
			return func() {
				mu.Lock()
				defer mu.Unlock()
				held--
			}, nil
		}
	}
	first := openClusterOf(t, 1, tune)[0]
	o := Options{
		Dir: t.TempDir(), NodeID: "late", ClusterID: "test", Logger: testLog("late"), Network: tcpNetwork(t),
		Join: []string{string(first.replica.address)}, ElectionTimeout: electionOfTests,
	}
	tune(&o)
	late := testenv.Must(Open(t.Context(), o))(t)
	t.Cleanup(func() { testenv.Check(t, late.Close(context.Background())) })
	until(testContext(t), t, "the leader is asked", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return asked > 2
	})
	testenv.Equal(t, len(first.cluster.Members()), 1, "it was taken in:")
	mu.Lock()
	shared = "new"
	mu.Unlock()
	testenv.NoError(t, late.WaitReady(t.Context()))
	testenv.Equal(t, len(first.cluster.Members()), 2, "members:")
	until(testContext(t), t, "what was held is released", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return held == 0
	})
}

// TestMaxMembers: of two servers that come at once, and of which one is one too many, one is taken in. The other one is
// when a member was removed.
func TestMaxMembers(t *testing.T) {
	ctx := testContext(t)
	first := openClusterOf(t, 2, func(o *Options) { o.MaxMembers = 3 })[0]
	var asked [2]atomic.Int64
	names := []string{"late", "later"}
	for i, name := range names {
		o := Options{
			Dir: t.TempDir(), NodeID: name, ClusterID: "test", Logger: testLog(name), Network: tcpNetwork(t), Join: []string{string(first.replica.address)}, MaxMembers: 3,
			Share: func() string { asked[i].Add(1); return "" }, ElectionTimeout: electionOfTests,
		}
		s := testenv.Must(Open(t.Context(), o))(t)
		t.Cleanup(func() { testenv.Check(t, s.Close(context.Background())) })
	}
	isMember := func(name string) bool {
		return slices.ContainsFunc(first.cluster.Members(), func(m Member) bool { return m.Name == name })
	}
	until(ctx, t, "one is taken in", func() bool { return isMember(names[0]) || isMember(names[1]) })
	out := 0
	if isMember(names[0]) {
		out = 1
	}
	before := asked[out].Load()
	until(ctx, t, "the other one asks again and again", func() bool { return asked[out].Load() > before+5 })
	if got := first.cluster.Members(); len(got) != 3 || isMember(names[out]) {
		t.Errorf("the members are %v", got)
	}
	testenv.NoError(t, first.cluster.RemoveMember(ctx, "s1"))
	until(ctx, t, "the other one is taken in", func() bool { return isMember(names[out]) })
}
