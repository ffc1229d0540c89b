// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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
		grant, err := leader.API().LeaseGrant(c.ctx, &pb.LeaseGrantRequest{TTL: ttl})
		if err != nil {
			c.Fatal(err)
		}
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
				if _, _, there := leader.fsm.view().Lease(id); there {
					c.Errorf("seed %d: a keep-alive called a lease gone that is there", c.seed)
				}
			}
		})
	}
	renewing.Wait()
	if len(kept) < leases/10 || refused < leases/10 {
		c.Fatalf("seed %d: %d leases kept, %d refused: the test does not meet the moment", c.seed, len(kept), refused)
	}
	for early := time.Duration(0); early < ttl*time.Second; early += 500 * time.Millisecond {
		c.checkKept(leader, kept, ttl*time.Second)
		c.pass(500 * time.Millisecond)
	}
	c.eventually("all leases have expired", ttl*time.Second, func() bool { return len(leader.fsm.view().Leases()) == 0 })
}

// checkKept checks that no lease is gone before its time.
func (c *cluster) checkKept(leader *Store, kept map[int64]time.Time, ttl time.Duration) {
	for id, at := range kept {
		since := time.Since(at)
		if since >= ttl {
			continue
		}
		resp, err := leader.API().LeaseTimeToLive(context.Background(), &pb.LeaseTimeToLiveRequest{ID: id})
		if err != nil || resp.TTL < 0 {
			c.Fatalf("seed %d: a lease is gone %v after a keep-alive that was acknowledged: %v, %v", c.seed, since, resp, err)
		}
	}
}
