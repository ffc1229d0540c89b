// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestKeepAliveAtExpiry renews leases through changing servers in the moments in
// which they expire, while the leader revokes others. A keep-alive that was
// acknowledged keeps its lease for its whole TTL; a lease that one calls gone is
// gone.
func TestKeepAliveAtExpiry(t *testing.T) {
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprint(servers), func(t *testing.T) {
			seeds(t, 2, func(t *testing.T, seed uint64) {
				stage(t, seed, servers, nil, func(c *cluster) { c.keepAliveAtExpiry() })
			})
		})
	}
}

func (c *cluster) keepAliveAtExpiry() {
	const leases, ttl = 300, 10 // seconds
	leader := c.leader().running()
	var ids []int64
	for range leases {
		grant := testenv.Must(leader.API().LeaseGrant(c.ctx, &pb.LeaseGrantRequest{TTL: ttl}))(c)
		ids = append(ids, grant.ID)
	}
	granted := time.Now()
	for _, n := range c.nodes {
		n.faults.DelayFlushes(5 * time.Millisecond) // so that it takes a while to revoke them all
	}
	var mu sync.Mutex
	kept, refused := make(map[int64]time.Time), 0
	var renewing sync.WaitGroup
	for i, id := range ids {
		store := c.nodes[i%len(c.nodes)].running()
		at := granted.Add(ttl*time.Second - 200*time.Millisecond + time.Duration(c.rand.Int64N(int64(time.Second))))
		renewing.Go(func() {
			time.Sleep(time.Until(at))
			sent := time.Now()
			answer, err := store.API().KeepAlive(c.ctx, &pb.LeaseKeepAliveRequest{ID: id})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				c.Errorf("seed %d: keep-alive: %v", c.seed, err)
			case answer.TTL > 0:
				kept[id] = sent
			default:
				refused++
				if _, _, exists := leader.replica.fsm.view().Lease(id); exists {
					c.Errorf("seed %d: a keep-alive called a lease gone that exists", c.seed)
				}
			}
		})
	}
	renewing.Wait()
	c.endIf(len(kept) < leases/10 || refused < leases/10, "%d leases kept, %d refused: the test does not meet the moment", len(kept), refused)
	for early := time.Duration(0); early < ttl*time.Second; early += 500 * time.Millisecond {
		c.checkKept(leader, kept, ttl*time.Second)
		c.pass(500 * time.Millisecond)
	}
	c.eventually("all leases have expired", ttl*time.Second, func() bool { return len(leader.replica.fsm.view().Leases()) == 0 })
}

// checkKept checks that no lease is gone before its time.
func (c *cluster) checkKept(leader *Store, kept map[int64]time.Time, ttl time.Duration) {
	for id, at := range kept {
		since := time.Since(at)
		if since >= ttl {
			continue
		}
		resp, err := leader.API().LeaseTimeToLive(context.Background(), &pb.LeaseTimeToLiveRequest{ID: id})
		c.endIf(err != nil || resp.TTL < 0, "a lease is gone %v after a keep-alive that was acknowledged: %v, %v", since, resp, err)
	}
}

// A grant and a revocation through a follower are done, their answers lost, and
// both sent again, as deliver does. Meanwhile the same id was revoked or granted by
// others. The state machine does nothing the second time, so for the leader's
// lessor nothing has happened either.
func TestScenarioRepeatedLeaseCommands(t *testing.T) {
	stages(t, 1, 3, nil, func(c *cluster) {
		const id, ttl = 7, 5 // seconds
		s := c.leader().running()
		through := c.others(c.leader())[0].running()
		testenv.NoError(c, testenv.Err(through.API().Put(c.ctx, &pb.PutRequest{Key: []byte("k")}))) // opens the session
		number := func(r mvcc.Request) mvcc.Command {
			command := mvcc.Command{Request: r}
			if _, ok := peersOf(through).forwarder.session.addNumber(&command); !ok {
				c.Fatal("no session is open")
			}
			return command
		}
		grant, revoke := number(&pb.LeaseGrantRequest{ID: id, TTL: ttl}), number(&pb.LeaseRevokeRequest{ID: id})
		send := func(command mvcc.Command) {
			if res, err := peersOf(through).forwarder.batches.propose(c.ctx, bounds{}, command); err != nil || res.Err != nil {
				c.Fatal(res, err)
			}
		}
		send(grant)
		send(revoke)
		send(grant)
		if _, ok := s.lessor.remainingTTL(id); ok {
			c.Errorf("seed %d: the lessor knows a lease that does not exist", c.seed)
		}
		testenv.Must(s.API().LeaseGrant(c.ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}))(c)
		send(revoke)
		testenv.Equal(c, testenv.Must(s.API().KeepAlive(c.ctx, &pb.LeaseKeepAliveRequest{ID: id}))(c).TTL, ttl, "seed %d: a keep-alive of a lease that exists:", c.seed)
		c.pass(2 * ttl * time.Second)
		c.failIf(s.replica.fsm.view().HasLease(id), "a lease of %d s exists after twice that", ttl)
	})
}
