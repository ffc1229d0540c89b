// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// A revocation that was refused leaves the lease, and its expiry.
func TestRefusedRevocationKeepsTheLease(t *testing.T) {
	l := newLessor(clocktesting.NewFakeClock(time.Unix(0, 0)), nil)
	l.promote(func() []mvcc.Lease { return []mvcc.Lease{{ID: 7, TTL: 10}} })
	for _, err := range []error{mvcc.ErrFenced, mvcc.ErrSession, mvcc.ErrStale} {
		l.observe(mvcc.Command{Request: &pb.LeaseRevokeRequest{ID: 7}}, mvcc.Result{Err: err})
		if _, known := l.remainingTTL(7); !known {
			t.Fatalf("after %v it never expires", err)
		}
	}
	l.observe(mvcc.Command{Request: &pb.LeaseRevokeRequest{ID: 7}}, mvcc.Result{Response: &pb.LeaseRevokeResponse{}})
	if _, known := l.remainingTTL(7); known {
		t.Fatal("it was revoked, and is still waited for")
	}
}

// A write whose number the state machine has given up, before it ever arrived,
// is sent again under another.
func TestGivenUpNumberIsReplaced(t *testing.T) {
	ctx := testContext(t)
	s := openCluster(t, 1)[0]
	testenv.Must(s.api.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")}))(t)
	peersOf(s).forwarder.session.mu.Lock()
	id, next := peersOf(s).forwarder.session.id, peersOf(s).forwarder.session.lastNumber+3
	peersOf(s).forwarder.session.mu.Unlock()
	same := &pb.PutRequest{Key: []byte("b"), Value: []byte("2")}
	res, err := s.writer.proposer.propose(ctx, bounds{}, mvcc.Command{Request: same, Session: id, Seq: next, Floor: next})
	testenv.Require(t, err == nil && res.Err == nil, "%v %v", err, res.Err)
	testenv.Must(s.api.Put(ctx, same))(t)
}

// A healthy voter is not taken out if those that are left could do nothing
// without it.
func TestRemoveKeepsAMajority(t *testing.T) {
	ctx := testContext(t)
	stores := openCluster(t, 3)
	until(ctx, t, "a leader", func() bool { lead, _ := stores[0].leader.get(); return lead.exists() })
	var leader, dead, other *Store
	for _, s := range stores {
		switch lead, _ := s.leadership.get(); {
		case lead.Leader:
			leader = s
		case dead == nil:
			dead = s
		default:
			other = s
		}
	}
	testenv.NoError(t, dead.Close(ctx))
	until(ctx, t, "the dead one is missed", func() bool { return time.Since(peersOf(leader).peers.Contact(dead.replica.id)) > healthyWithin })
	for _, s := range []*Store{other, leader} {
		err := leader.cluster.RemoveMember(ctx, s.replica.name)
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "Nothing was changed") {
			t.Fatalf("remove %s: %v", s.replica.name, err)
		}
	}
	testenv.NoError(t, leader.cluster.RemoveMember(ctx, dead.replica.name))
	testenv.Must(other.api.Put(ctx, &pb.PutRequest{Key: []byte("a")}))(t)
}

// The revision that a watch's creation tells is the one before its first event,
// whatever is written meanwhile: clients go on from there after a lost
// connection.
func TestWatchStartsWhereItSays(t *testing.T) {
	ctx := testContext(t)
	s := openStore(t, Options{Dir: t.TempDir()})
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			if _, err := s.api.Put(ctx, &pb.PutRequest{Key: []byte("a")}); err != nil {
				done <- err
				return
			}
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
		}
	}()
	for range 300 {
		w, present := s.watches.Watch(&pb.WatchCreateRequest{Key: []byte("a")})
		d, err := w.Next(ctx)
		w.Close()
		if err != nil || len(d.Events) == 0 || d.Events[0].Kv.ModRevision != present+1 {
			t.Fatalf("said to start after %d: %v, %v", present, d.Events, err)
		}
	}
	close(stop)
	if err := <-done; err != nil && !errors.Is(err, ctx.Err()) {
		t.Fatal(err)
	}
}

// A second server of a name that is taken stays outside, until the first one is
// gone: they would take each other for the same server's earlier directory.
func TestJoinUnderATakenName(t *testing.T) {
	ctx := testContext(t)
	stores := openCluster(t, 2)
	twin := testenv.Must(Open(ctx, Options{
		Dir: t.TempDir(), NodeID: "s1", ClusterID: "test", Logger: testLog("twin"), Network: tcpNetwork(t),
		Join: []string{string(stores[0].replica.address)},
	}))(t)
	t.Cleanup(func() { testenv.Check(t, twin.Close(ctx)) })
	if err := peersOf(twin).membership.announceOnce(ctx, 0); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("join: %v", err)
	}
	if n := len(stores[0].cluster.Members()); n != 2 {
		t.Fatalf("%d members", n)
	}
	testenv.NoError(t, stores[1].Close(ctx))
	testenv.NoError(t, twin.WaitReady(ctx))
}

// The newest entries of a recovered store are raft's own, and only its snapshot
// has them. It can be read all the same.
func TestReadsAfterRecovery(t *testing.T) {
	ctx := testContext(t)
	stores := openCluster(t, 3)
	testenv.Must(stores[0].api.Put(ctx, &pb.PutRequest{Key: []byte("a")}))(t)
	for range 3 { // each new leader begins with entries of raft's
		until(ctx, t, "the leadership moves", func() bool {
			for _, s := range stores {
				if lead, _ := s.leadership.get(); lead.Leader {
					return s.cluster.TransferLeadership(ctx) == nil
				}
			}
			return false
		})
	}
	for _, s := range stores {
		testenv.NoError(t, s.Close(ctx))
	}
	o := stores[0].replica.opts
	o.Network, o.Join = nil, nil
	testenv.NoError(t, Recover(o))
	o.Network = tcpNetwork(t)
	got, err := openStore(t, o).api.Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	testenv.Require(t, err == nil && got.Count == 1, "%v, %v", got, err)
}

// A server whose keys were replaced after it had asked for them gets them again by itself, and is added then; the
// others are asked no more often than is needed.
func TestRefusedServerRenews(t *testing.T) {
	ctx := testContext(t)
	first := openStore(t, Options{Dir: t.TempDir(), NodeID: "s0", ClusterID: "test", Network: tcpNetwork(t), Admit: func(share string) (func(), error) {
		if share != "new" {
			return nil, fmt.Errorf("%w: %q", ErrShare, share)
		}
		return func() {}, nil
	}})
	testenv.NoError(t, first.WaitReady(ctx))
	var share atomic.Value
	share.Store("old")
	var renewed atomic.Int64
	second := openStore(t, Options{Dir: t.TempDir(), NodeID: "s1", ClusterID: "test", Network: tcpNetwork(t), Join: []string{string(first.replica.address)},
		Share: func() string { return share.Load().(string) },
		Renew: func(context.Context) error {
			if renewed.Add(1) == 1 {
				return errors.New("no server answers")
			}
			share.Store("new")
			return nil
		},
	})
	testenv.NoError(t, second.WaitReady(ctx))
	if n := renewed.Load(); n != 2 {
		t.Errorf("the keys were fetched %d times", n)
	}
	testenv.Equal(t, len(first.cluster.Members()), 2, "members:")
}
