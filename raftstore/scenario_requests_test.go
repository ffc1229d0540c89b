// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// A watch on a server that is cut off ends if its client requires a leader.
// Others wait, and miss nothing.
func TestScenarioWatchWithoutLeader(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		leader := c.leader()
		away := c.others(leader)[0]
		client := away.running().Client()
		picky := client.Watch(clientv3.WithRequireLeader(c.within(time.Minute)), "k")
		patient := client.Watch(c.within(time.Minute), "k")
		c.pass(10 * time.Second)
		c.isolate(away)
		cut := time.Now()
		kv := leader.running().Client().KV
		c.put(c.within(time.Second), leader.name, kv, "k", "while away")
		resp, open := <-picky
		// Raft gives its leader up at a look, one to two times its patience after the last one, if it has not heard it
		// for that patience by then.
		const limit = 3*candidateFor*defaultElectionTimeout + leaderlessAfter + 100*time.Millisecond
		testenv.True(t, errors.Is(resp.Err(), rpctypes.ErrNoLeader) && time.Since(cut) <= limit,
			"after %v: %+v, %v", time.Since(cut), resp, open)
		if again := <-client.Watch(clientv3.WithRequireLeader(c.within(time.Minute)), "k"); !errors.Is(again.Err(), rpctypes.ErrNoLeader) {
			t.Errorf("a new one: %+v", again)
		}
		c.net.HealAll()
		testenv.Equal(t, string(collect(c.within(time.Minute), t, patient, 1)[0].Kv.Value), "while away", "")
		again := client.Watch(clientv3.WithRequireLeader(c.within(time.Minute)), "k")
		c.put(c.within(time.Second), leader.name, kv, "k", "back")
		testenv.Equal(t, string(collect(c.within(time.Minute), t, again, 1)[0].Kv.Value), "back", "")
	})
}

// Upstream's caches begin a watch again as soon as it is refused. Without a leader a watch is therefore refused a few
// times, and begins as soon as there is a leader.
func TestScenarioWatchesAreRefusedSlowly(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		leader := c.leader()
		away := c.others(leader)[0]
		c.isolate(away)
		c.eventually("the leader is missed", time.Minute, func() bool { return !away.running().leader.hasLeader() })
		client := away.running().Client()
		const most = 12
		cut, refused := time.Now(), 0
		for time.Since(cut) < 30*time.Second && refused <= most {
			resp := <-client.Watch(clientv3.WithRequireLeader(c.within(time.Minute)), "k")
			testenv.ErrorIs(c, resp.Err(), rpctypes.ErrNoLeader, "a watch without a leader")
			refused++
		}
		c.Logf("%d refusals in %v", refused, time.Since(cut))
		testenv.True(c, refused <= most, "a watch was refused %d times in %v, more than %d times", refused, time.Since(cut), most)
		ended, cancel := context.WithCancel(c.ctx)
		time.AfterFunc(50*time.Millisecond, cancel)
		began := time.Now()
		_, open := <-client.Watch(clientv3.WithRequireLeader(ended), "k")
		testenv.True(c, !open && time.Since(began) < 100*time.Millisecond, "a watch whose context ended waits for %v", time.Since(began))
		time.AfterFunc(200*time.Millisecond, c.net.HealAll)
		again := client.Watch(clientv3.WithRequireLeader(c.within(time.Minute)), "k")
		testenv.True(c, away.running().leader.hasLeader() && time.Since(began) < 5*time.Second,
			"a watch waits for %v when there is a leader again", time.Since(began))
		c.put(c.within(time.Second), leader.name, leader.running().Client().KV, "k", "back")
		testenv.Equal(c, string(collect(c.within(time.Minute), c, again, 1)[0].Kv.Value), "back", "")
	})
}

// Values as large as they may be, through every server at once, and a follower
// that needs a snapshot of them.
func TestScenarioLargeValues(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		leader := c.leader()
		away := c.others(leader)[0]
		c.isolate(away)
		write := func(from, to int, nodes []*node) {
			var writers sync.WaitGroup
			for i := from; i < to; i++ {
				n := nodes[i%len(nodes)]
				writers.Go(func() {
					value := fmt.Sprint(i, strings.Repeat("x", 1400<<10))
					if o := c.put(c.within(20*time.Second), n.name, n.running().Client().KV, fmt.Sprintf("large%d", i), value); o.err != nil {
						t.Errorf("%s through %s: %v", o.Key, n.name, o.err)
					}
				})
			}
			writers.Wait()
		}
		write(0, 12, c.others(away))
		c.fill(leader, 20)
		c.compactLog(c.others(away)...)
		c.net.HealAll()
		c.ready(away)
		write(12, 24, c.nodes)
		for _, n := range c.nodes {
			if o := c.list(c.within(20*time.Second), n.name, n.running().Client().KV, "large"); o.err != nil || len(o.KVs) != 24 {
				t.Errorf("through %s: %d values, %v", n.name, len(o.KVs), o.err)
			}
			// A write that also reads a lot has a large answer.
			txn, err := n.running().Client().Txn(c.within(20*time.Second)).
				Then(clientv3.OpPut("txn", "of "+n.name), clientv3.OpGet("large", clientv3.WithPrefix())).Commit()
			testenv.True(t, err == nil && len(txn.Responses[1].GetResponseRange().Kvs) == 24, "a transaction through %s: %v", n.name, err)
		}
	})
}

// Clients give up at any moment, while the leader changes. What they gave up may
// have been done, once.
func TestScenarioImpatientClients(t *testing.T) {
	scenarios(t, 3, 3, func(c *cluster) {
		w := c.work(2)
		var all sync.WaitGroup
		ctx, cancel := context.WithCancel(c.ctx)
		for i, n := range c.nodes {
			all.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					short, stop := context.WithTimeout(ctx, time.Duration(k%40)*100*time.Microsecond)
					c.put(short, n.name, n.running().Client().KV, "impatient", fmt.Sprintf("impatient %d %d", i, k))
					stop()
					c.pass(2 * time.Millisecond)
				}
			})
		}
		for range 5 {
			c.pass(300 * time.Millisecond)
			testenv.Check(c, c.leader().running().cluster.TransferLeadership(c.within(5*time.Second)), "seed %d", c.seed)
		}
		cancel()
		all.Wait()
		w.stop()
	})
}
