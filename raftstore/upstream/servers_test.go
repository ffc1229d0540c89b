// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// setupFunc sets up a storage on a store of its own.
type setupFunc func(t testing.TB, options ...option) (context.Context, *fixture)

// everywhere runs a test on a cluster of one server, and on a follower of three.
func everywhere(t *testing.T, run func(*testing.T, setupFunc)) {
	t.Run("one", func(t *testing.T) {
		run(t, func(t testing.TB, options ...option) (context.Context, *fixture) {
			return setupOn(t, openStore, options...)
		})
	})
	t.Run("follower", func(t *testing.T) {
		run(t, func(t testing.TB, options ...option) (context.Context, *fixture) {
			return setupOn(t, openFollower, options...)
		})
	})
}

// openStore opens a store in a new directory, for one test.
func openStore(t testing.TB, progressInterval time.Duration) *raftstore.Store {
	t.Helper()
	return open(t, raftstore.Options{Dir: t.TempDir(), NodeID: "one", ProgressInterval: progressInterval})
}

// patience is for what takes a moment on an idle machine.
const patience = 2 * time.Minute

// openFollower opens three stores that are one cluster, and returns one that
// does not lead. The others get their votes while the test is at work.
func openFollower(t testing.TB, progressInterval time.Duration) *raftstore.Store {
	t.Helper()
	dir := t.TempDir()
	var stores []*raftstore.Store
	var first string
	for i := range 3 {
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
		name := fmt.Sprintf("s%d", i)
		o := raftstore.Options{
			Dir: filepath.Join(dir, name), NodeID: name, ClusterID: "upstream", ProgressInterval: progressInterval,
			Network: &raftstore.Network{Address: l.Addr().String(), Listener: l, Dial: dialTCP},
			// A busy machine keeps a leader waiting for longer than the usual one, and an election fails upstream's
			// tests.
			ElectionTimeout: 5 * time.Second,
		}
		if i == 0 {
			first = o.Network.Address
		} else {
			o.Join = []string{first}
		}
		stores = append(stores, open(t, o))
	}
	for _, s := range slices.Backward(stores) {
		if !s.Status().Leadership.Leader {
			return s
		}
	}
	t.Fatal("all three lead")
	return nil
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// open opens a store until the test ends, and waits until it is ready.
func open(t testing.TB, o raftstore.Options) *raftstore.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	o.Logger = slog.New(slog.DiscardHandler)
	s := testenv.Must(raftstore.Open(ctx, o))(t)
	t.Cleanup(func() { testenv.Check(t, s.Close(context.Background())) })
	testenv.NoError(t, s.WaitReady(ctx))
	return s
}
