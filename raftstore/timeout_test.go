// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// A request that took the server too long ends with etcd's word for that, which is Unavailable, whether it is asked at the
// leader or elsewhere. One that took its client too long ends as the client's deadline or its cancellation.
func TestScenarioTimeouts(t *testing.T) {
	puts := 0
	requests := map[string]func(context.Context, *clientv3.Client) error{
		"put": func(ctx context.Context, c *clientv3.Client) error {
			puts++ // each value is written once
			_, err := c.Put(ctx, "k", fmt.Sprint(puts))
			return err
		},
		"grant": func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Grant(ctx, 60)
			return err
		},
		"compact": func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Compact(ctx, 1)
			return err
		},
	}
	scenario(t, 1, 2, func(c *cluster) {
		leader := c.leader()
		c.put(c.within(time.Second), leader.name, leader.running().Client().KV, "k", "before")
		for _, n := range c.nodes {
			n.faults.DelayFlushes(time.Hour) // so nothing is committed
		}
		for name, request := range requests {
			for _, n := range c.nodes {
				client := n.running().Client().Client
				began := time.Now()
				err := request(c.within(time.Minute), client)
				if took := time.Since(began); !timedOut(err) || took > defaultRequestTimeout+time.Second {
					t.Errorf("%s through %s (the leader is %s) after %v: %v, want etcd's word that the request timed out", name, n.name, leader.name, took, err)
				}
				if err := request(c.within(time.Second), client); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s through %s, whose client waits for a second: %v", name, n.name, err)
				}
				ctx, cancel := context.WithCancel(c.within(time.Minute))
				stop := time.AfterFunc(time.Second, cancel)
				if err := request(ctx, client); !errors.Is(err, context.Canceled) {
					t.Errorf("%s through %s, whose client goes away after a second: %v", name, n.name, err)
				}
				stop.Stop()
				cancel()
			}
		}
		for _, n := range c.nodes {
			n.faults.DelayFlushes(0)
		}
	})
}

// timedOut says whether an error is one with which etcd's server ends a request that took it too long.
func timedOut(err error) bool {
	return errors.Is(err, rpctypes.ErrTimeout) || errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail) || errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost)
}

// The same over a connection, where etcd's client tells the two apart by the words and the code of the answer.
func TestTimeoutOverGRPC(t *testing.T) {
	faults := &disk.Faults{}
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
	if _, err := client.Put(gone, "k", "never"); !errors.Is(err, context.Canceled) {
		t.Errorf("the client went away: %v", err)
	}
}
