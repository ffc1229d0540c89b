// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// A write's answer is lost, because the leader dies when it has done it. The
// server through which it came sends it again, to the next leader, and that one
// knows it already.
func TestScenarioLostAnswer(t *testing.T) {
	scenarios(t, 5, 3, func(c *cluster) {
		for round := range 4 {
			leader := c.leader()
			through := c.others(leader)[c.rand.IntN(2)]
			kv := through.running().Client().KV
			c.serves(through) // its session is open
			at := c.get(c.ctx, through.name, kv, "once").KVs
			was := int64(0)
			if len(at) > 0 {
				was = at[0].Mod
			}
			before := leader.running().Status().Revision
			// What it does not answer, it does all the same.
			c.net.Cut(leader.name, through.name)
			done := make(chan *operation, 1)
			go func() {
				value := fmt.Sprintf("once %d", round)
				if round%2 == 0 {
					done <- c.put(c.within(20*time.Second), through.name, kv, "once", value)
				} else {
					done <- c.cas(c.within(20*time.Second), through.name, kv, "once", value, was)
				}
			}()
			c.eventually("it is done at the leader", time.Second, func() bool {
				return leader.running().Status().Revision > before
			})
			leader.crash()
			o := <-done
			c.failIf(o.err != nil || !o.Wrote(), "%v", o)
			c.net.HealAll()
			leader.start()
			c.ready(leader)
		}
	})
}

// A write of a term that ends while another server takes the lead is fenced, or its outcome is open. It does not say
// that there is no leader: its writer would try again.
func TestScenarioWritesOfTransferredTerm(t *testing.T) {
	scenarios(t, 3, 3, func(c *cluster) {
		for range 5 {
			leader := c.leader()
			store := leader.running()
			term := store.Status().Leadership.Term
			var writing sync.WaitGroup
			for i := range 8 {
				writing.Go(func() {
					for n := 0; ; n++ {
						value := fmt.Sprintf("%d of writer %d in term %d", n, i, term)
						_, err := store.Write(WithTerm(c.ctx, term), &pb.PutRequest{Key: []byte("k"), Value: []byte(value)})
						if err == nil {
							continue
						}
						if !errors.Is(err, mvcc.ErrFenced) && !errors.Is(err, rpctypes.ErrGRPCTimeoutDueToLeaderFail) {
							c.Errorf("seed %d: a write of term %d, when another server led: %v", c.seed, term, err)
						}
						return
					}
				})
			}
			c.pass(100 * time.Millisecond)
			err := store.Cluster().TransferLeadership(c.ctx)
			c.failIf(err != nil, "%v", err)
			writing.Wait()
			c.leader()
		}
	})
}
