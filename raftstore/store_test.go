// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// testContext ends before the test run's own time limit would.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// openStore opens a store and waits until it is ready. The test closes it.
func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	ctx := testContext(t)
	if o.NodeID == "" {
		o.NodeID = "one"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAcknowledgedWritesSurviveARestart(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s := openStore(t, Options{Dir: dir})
	put, err := s.Client().Put(ctx, "/a", "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Options{Dir: dir})
	got, err := s.Client().KV.Get(ctx, "/a")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "1" || got.Header.Revision != put.Header.Revision {
		t.Fatalf("after the restart: %v", got)
	}
	// The history is there too: a watch resumes where it was.
	watch := s.Client().Watch(ctx, "/a", clientv3.WithRev(put.Header.Revision))
	resp := <-watch
	if resp.Err() != nil || len(resp.Events) != 1 || resp.Events[0].Kv.ModRevision != put.Header.Revision {
		t.Fatalf("watch: %v", resp)
	}
}

// noise is a value that cannot be packed.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return string(b)
}
