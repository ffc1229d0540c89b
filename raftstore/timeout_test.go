// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// A request that took the server too long ends with etcd's word for that, which is Unavailable, whether it is asked at
// the leader or elsewhere, or of a server that is the only one. One that took its client too long ends as the client's
// deadline or its cancellation.
func TestScenarioTimeouts(t *testing.T) {
	puts := 0
	put := func(ctx context.Context, c *clientv3.Client) error {
		puts++ // each value is written once
		_, err := c.Put(ctx, "k", fmt.Sprint(puts))
		return err
	}
	requests := map[string]request{
		"put": put,
		"grant": func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Grant(ctx, 60)
			return err
		},
		"compact": func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Compact(ctx, 1)
			return err
		},
	}
	t.Run("two servers", func(t *testing.T) {
		scenario(t, 1, 2, func(c *cluster) {
			leader := c.leader()
			c.put(c.within(time.Second), leader.name, leader.running().Client().KV, "begun", "before")
			c.timesOut(requests)
		})
	})
	t.Run("one server", func(t *testing.T) {
		stage(t, 1, 0, nil, func(c *cluster) {
			n := c.standalone()
			term := n.term()
			requests["put of a term"] = func(ctx context.Context, c *clientv3.Client) error { return put(WithTerm(ctx, term), c) }
			c.timesOut(requests)
		})
	})
}

type request func(context.Context, *clientv3.Client) error

// timesOut wants each request to end in time while nothing is committed.
func (c *cluster) timesOut(requests map[string]request) {
	for _, n := range c.nodes {
		n.faults.DelayFlushes(time.Hour) // so nothing is committed
	}
	for name, request := range requests {
		for _, n := range c.nodes {
			client := n.running().Client().Client
			began := time.Now()
			err := request(c.within(time.Minute), client)
			if took := time.Since(began); !timedOut(err) || took > defaultRequestTimeout+time.Second {
				c.Errorf("%s through %s after %v: %v, want etcd's word that the request timed out\n%s", name, n.name, took, err, c.state())
			}
			if err := request(c.within(time.Second), client); !errors.Is(err, context.DeadlineExceeded) {
				c.Errorf("%s through %s, whose client waits for a second: %v", name, n.name, err)
			}
			ctx, cancel := context.WithCancel(c.within(time.Minute))
			stop := time.AfterFunc(time.Second, cancel)
			if err := request(ctx, client); !errors.Is(err, context.Canceled) {
				c.Errorf("%s through %s, whose client goes away after a second: %v", name, n.name, err)
			}
			stop.Stop()
			cancel()
		}
	}
	for _, n := range c.nodes {
		n.faults.DelayFlushes(0)
	}
}

// standalone starts the only server of a cluster, which has no network.
func (c *cluster) standalone() *node {
	c.Helper()
	n := c.add("standalone")
	o := n.options()
	testenv.NoError(c, errors.Join(o.Network.Listener.Close(), n.open(o, true)))
	c.ready(n)
	return n
}

// What the only server's clients gave up, since its disk stalled, is done once if it was in the log already, and before
// all that is written later; otherwise it is never done.
func TestScenarioLateWritesOfStandaloneServer(t *testing.T) {
	stage(t, 1, 0, nil, func(c *cluster) {
		n := c.standalone()
		kv := n.running().Client().KV
		n.faults.DelayFlushes(time.Hour)
		var clients sync.WaitGroup
		var inLog, waiting []string
		for i := range entriesInFlight + 3 {
			key := fmt.Sprint("late ", i)
			if i < entriesInFlight {
				inLog = append(inLog, key)
			} else {
				waiting = append(waiting, key)
			}
			clients.Go(func() {
				if _, err := kv.Put(c.within(time.Minute), key, "x"); !timedOut(err) {
					c.Errorf("%s: %v", key, err)
				}
			})
			synctest.Wait() // one entry each, in this order
		}
		clients.Wait()
		n.faults.DelayFlushes(0)
		for _, key := range append(inLog, waiting...) {
			testenv.Must(kv.Put(c.within(time.Second), key, "y"))(t)
			got := testenv.Must(kv.Get(c.within(time.Second), key))(t)
			want := int64(1)
			if slices.Contains(inLog, key) {
				want = 2
			}
			if kv := got.Kvs[0]; kv.Version != want || string(kv.Value) != "y" {
				t.Errorf("%s: %v, want version %d and the value of later", key, kv, want)
			}
		}
	})
}

// A lease that ends while the only server's disk is stalled is revoked once: as soon as that is done its id may be
// granted again, and a second revocation would take that lease.
func TestScenarioRevokedOnceByStandaloneServer(t *testing.T) {
	stage(t, 1, 0, nil, func(c *cluster) {
		n := c.standalone()
		client := n.running().Client()
		testenv.Must(client.Grant(c.within(time.Second), 2))(t)
		before := n.running().replica.raft.LastIndex()
		n.faults.DelayFlushes(time.Hour)
		c.pass(5 * defaultRequestTimeout)
		n.faults.DelayFlushes(0)
		c.eventually("the lease is revoked", time.Minute, func() bool {
			leases, err := client.Leases(c.within(time.Second))
			return err == nil && len(leases.Leases) == 0
		})
		c.pass(time.Minute)
		if entries := n.running().replica.raft.LastIndex() - before; entries != 1 {
			t.Errorf("%d entries in the log, want the revocation", entries)
		}
	})
}

// timedOut says whether an error is one with which etcd's server ends a request that took it too long.
func timedOut(err error) bool {
	return errors.Is(err, rpctypes.ErrTimeout) || errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail) || errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost)
}

// The same over a connection, where etcd's client tells the two apart by the words and the code of the answer.
func TestTimeoutOverGRPC(t *testing.T) {
	faults := &diskfaults.Faults{}
	s := openClusterOf(t, 1, func(o *Options) { o.RequestTimeout, o.Faults = 2*time.Second, faults })[0]
	client := dial(t, s)
	ctx := testContext(t)
	faults.DelayFlushes(time.Hour)
	defer faults.DelayFlushes(0)
	if _, err := client.Put(ctx, "k", "late"); !timedOut(err) {
		t.Errorf("it took the server too long: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	testenv.ErrorIs(t, testenv.Err(client.Put(gone, "k", "never")), context.Canceled, "the client went away")
}
