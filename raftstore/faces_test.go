// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// faces runs a test through both faces of a new store, the native client and
// etcd's own: of the only server of a cluster, and of the leader and a follower
// of three.
func faces(t *testing.T, o Options, run func(ctx context.Context, t *testing.T, c *clientv3.Client)) {
	t.Run("native", func(t *testing.T) {
		o := o
		o.Dir = t.TempDir()
		run(testContext(t), t, openStore(t, o).Client().Client)
	})
	t.Run("grpc", func(t *testing.T) {
		o := o
		o.Dir = t.TempDir()
		run(testContext(t), t, dial(t, openStore(t, o)))
	})
	onThree(t, o, func(ctx context.Context, t *testing.T, s *Store) {
		client := s.Client().Client
		defer func() { _ = client.Close() }() // its keep-alives
		run(ctx, t, client)
	})
	// Not in a scenario: etcd's client waits for channels that are global, which
	// stops a bubble's time. So the two share a cluster, and its forming.
	stores := openClusterOf(t, 3, like(o))
	for i, place := range []string{"leader", "follower"} {
		t.Run(place+"/grpc", func(t *testing.T) {
			ctx, c := testContext(t), dial(t, stores[i])
			testenv.Must(c.Delete(ctx, "", clientv3.WithPrefix()))(t)
			run(ctx, t, c)
		})
	}
}

// everywhere runs a test on the only server of a cluster, and on the leader and
// a follower of three.
func everywhere(t *testing.T, run func(ctx context.Context, t *testing.T, s *Store)) {
	t.Run("one", func(t *testing.T) { run(testContext(t), t, openStore(t, Options{Dir: t.TempDir()})) })
	onThree(t, Options{}, run)
}

// onThree runs a test on the leader and a follower of three, in a scenario's
// time.
func onThree(t *testing.T, o Options, run func(ctx context.Context, t *testing.T, s *Store)) {
	for _, place := range []string{"leader", "follower"} {
		t.Run(place+"/native", func(t *testing.T) {
			stage(t, 1, 3, like(o), func(c *cluster) {
				n := c.leader()
				if place == "follower" {
					n = c.others(n)[0]
				}
				run(testContext(c.T), c.T, n.store)
				c.equal(c.nodes)
			})
		})
	}
}

// like gives a cluster's servers a test's options.
func like(o Options) func(*Options) {
	return func(to *Options) { to.MaxRequestBytes, to.ProgressInterval = o.MaxRequestBytes, o.ProgressInterval }
}

// dial serves the store on a unix socket until the test ends, and connects
// etcd's client to it.
func dial(t testing.TB, s *Store) *clientv3.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") // short: a socket's path has a limit
	testenv.NoError(t, err)
	socket := filepath.Join(dir, "store.sock")
	l := testenv.Must(net.Listen("unix", socket))(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.ServeGRPC(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		testenv.Check(t, errors.Join(<-served, os.RemoveAll(dir)))
	})
	c := testenv.Must(
		clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 2 * time.Minute, Logger: zap.NewNop()}))(t)
	t.Cleanup(func() { testenv.Check(t, c.Close()) })
	return c
}

func mustPut(ctx context.Context, t testing.TB, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	resp := testenv.Must(c.Put(ctx, key, value, opts...))(t)
	return resp.Header.Revision
}

// collect reads a watch until it has n events.
func collect(ctx context.Context, t testing.TB, watch clientv3.WatchChan, n int) []*clientv3.Event {
	t.Helper()
	var events []*clientv3.Event
	for len(events) < n {
		select {
		case resp, ok := <-watch:
			if !ok || resp.Err() != nil {
				t.Fatalf("the watch ended with %d of %d events: %v", len(events), n, resp.Err())
			}
			events = append(events, resp.Events...)
		case <-ctx.Done():
			t.Fatalf("%d of %d events came", len(events), n)
		}
	}
	return events
}
