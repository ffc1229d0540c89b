// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Raft's notices of two elections lie in the channel when their reader, which was
// waiting, comes to them: won, lost, won. Only the last one is of now, and by it
// this server leads in the term that it has taken up.
func TestOldNoticesOfLeadership(t *testing.T) {
	ctx := testContext(t)
	s := openSteady(t, 3)[0]
	lead, changed := s.leadership.get()
	testenv.Require(t, lead.Leader, "the first server does not lead")
	// The reader looks at its term, and passes over one that is not its own.
	come := func() { s.leadership.endedTerms <- 0 }
	taken := func(waiting func() int) {
		for waiting() > 0 {
			testenv.Require(t, ctx.Err() == nil, "the notices are not read")
			time.Sleep(time.Millisecond)
		}
	}
	s.leadership.mu.Lock() // so it is late
	come()
	taken(func() int { return len(s.leadership.endedTerms) })
	for _, leads := range []bool{true, false, true} {
		s.leadership.notices <- leads
	}
	s.leadership.mu.Unlock()
	taken(func() int { return len(s.leadership.notices) })
	come()
	taken(func() int { return len(s.leadership.endedTerms) }) // the reader is done with the others
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
	s.leader.setLeader(leader{})
	early, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	testenv.Fails(t, s.WaitReady(early), "ready while no leader is known")
	s.leader.setLeader(lead)
	s.leader.refreshing.Unlock()
	testenv.Check(t, s.WaitReady(t.Context()))
	testenv.Check(t, s.api.LeaderRequired(t.Context()))
}

// Without a leader, clients that require one are refused at once, and their
// streams end within seconds; what needs none goes on.
func TestWithoutLeader(t *testing.T) {
	// What waited for a leader instead of being refused would wait for longer than this test does.
	ctx, stores := testContext(t), openClusterOf(t, 3, func(o *Options) { o.RequestTimeout = time.Hour })
	clients := map[string]*clientv3.Client{"native": stores[2].Client().Client, "grpc": dial(t, stores[2])}
	mustPut(ctx, t, clients["grpc"], "/a", "1")
	leases, alive := map[string]clientv3.LeaseID{}, map[string]<-chan *clientv3.LeaseKeepAliveResponse{}
	for face, c := range clients {
		grant, err := c.Grant(ctx, 600)
		testenv.NoError(t, err)
		leases[face] = grant.ID
		alive[face], err = c.KeepAlive(clientv3.WithRequireLeader(ctx), grant.ID)
		testenv.NoError(t, err)
		if resp := <-alive[face]; resp == nil {
			t.Fatal("a lease is not kept alive")
		}
	}
	for _, s := range stores[:2] {
		testenv.NoError(t, s.Close(ctx))
	}
	until(ctx, t, "the leader is missed", func() bool { lead, _ := stores[2].leader.get(); return !lead.exists() })
	for face, c := range clients {
		t.Run(face, func(t *testing.T) {
			if resp := <-c.Watch(clientv3.WithRequireLeader(ctx), "/a"); !errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
				t.Errorf("a watch that requires a leader: %+v", resp)
			}
			// etcd's client drops the stream's status, and returns io.EOF, where the refusal arrives before it has sent
			// the request.
			err := io.EOF
			for errors.Is(err, io.EOF) && ctx.Err() == nil {
				_, err = c.KeepAliveOnce(clientv3.WithRequireLeader(ctx), leases[face])
			}
			testenv.ErrorIs(t, err, rpctypes.ErrNoLeader, "a keep-alive that requires a leader")
			// The client asks again for some seconds before it gives up.
			testenv.ErrorIs(t, testenv.Err(c.Get(clientv3.WithRequireLeader(ctx), "/a", clientv3.WithSerializable())), rpctypes.ErrNoLeader, "a read that requires a leader")
			txn, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Version("/a"), "=", 1)).
				Then(clientv3.OpGet("/a", clientv3.WithSerializable())).Else(clientv3.OpGet("/b", clientv3.WithSerializable())).Commit()
			if err != nil || !txn.Succeeded || len(txn.Responses[0].GetResponseRange().Kvs) != 1 {
				t.Errorf("a transaction of serializable reads: %v, %v", txn, err)
			}
			short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
			defer stop()
			if txn, err := c.Txn(short).Then(clientv3.OpGet("/a", clientv3.WithSerializable()), clientv3.OpGet("/a")).Commit(); err == nil {
				t.Errorf("a transaction with one read that is not serializable: %v", txn)
			}
			for {
				select {
				case _, open := <-alive[face]:
					if open {
						continue
					}
				case <-ctx.Done():
					t.Error("the keep-alive did not end")
				}
				break
			}
			testenv.Check(t, c.Lease.Close()) // or it tries again for as long as the process lives
		})
	}
}

// A leader may be asked to lead; another server is not the one to ask.
func TestMoveLeader(t *testing.T) {
	ctx := testContext(t)
	standalone := openStore(t, Options{Dir: t.TempDir()})
	testenv.Check(t, testenv.Err(dial(t, standalone).MoveLeader(ctx, standalone.replica.memberID)), "the only server to itself")
	stores := openCluster(t, 3)
	leader := dial(t, stores[0])
	testenv.Check(t, testenv.Err(leader.MoveLeader(ctx, stores[0].replica.memberID)), "the leader to itself")
	testenv.True(t, stores[0].Status().Leadership.Leader, "it leads no longer")
	testenv.ErrorIs(t, testenv.Err(leader.MoveLeader(ctx, 99)), rpctypes.ErrBadLeaderTransferee, "to no member")
	testenv.ErrorIs(t, testenv.Err(dial(t, stores[1]).MoveLeader(ctx, stores[0].replica.memberID)), rpctypes.ErrNotLeader, "a follower")
}
