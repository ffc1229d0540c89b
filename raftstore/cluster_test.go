// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// testLog shows what stores say when CORACLE_TEST_LOG is set.
func testLog(name string) *slog.Logger {
	if os.Getenv("CORACLE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("server", name)
}

// tcpNetwork is a server's network on loopback.
func tcpNetwork(t testing.TB) *Network {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &Network{
		Address: l.Addr().String(), Listener: l,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	}
}

// openCluster makes a cluster of n servers on loopback.
func openCluster(t testing.TB, n int) []*Store { return openClusterOf(t, n, func(*Options) {}) }

func openClusterOf(t testing.TB, n int, tune func(*Options)) []*Store {
	dir := t.TempDir()
	var stores []*Store
	for i := range n {
		o := Options{
			Dir: filepath.Join(dir, strconv.Itoa(i)), NodeID: fmt.Sprintf("s%d", i), ClusterID: "test",
			Logger: testLog(strconv.Itoa(i)), Network: tcpNetwork(t),
		}
		if i > 0 {
			o.Join = []string{string(stores[0].address)}
		}
		tune(&o)
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if err := s.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
	}
	want := n - (n+1)%2
	until(testContext(t), t, "the right number of votes", func() bool {
		voters := 0
		for _, m := range stores[0].Members() {
			if m.Voter {
				voters++
			}
		}
		return voters == want
	})
	return stores
}

func TestThreeServers(t *testing.T) {
	stores := openCluster(t, 3)
	for i, s := range stores {
		c := s.Client().Client
		key := fmt.Sprintf("k%d", i)
		put, err := c.Put(t.Context(), key, "v")
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range stores {
			got, err := other.Client().KV.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Kvs) != 1 || got.Kvs[0].ModRevision != put.Header.Revision {
				t.Fatalf("through another server: %v, after %v", got, put)
			}
		}
		got, err := c.Get(t.Context(), key, clientv3.WithSerializable())
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("a server does not know what was written through it: %v, %v", got, err)
		}
	}
}
