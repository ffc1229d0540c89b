// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// newServer makes a server's folder with its keys.
func newServer(t *testing.T) *Server {
	t.Helper()
	data := t.TempDir()
	dir := filepath.Join(data, "server")
	s := &Server{
		DataDir: data, ServerDir: dir, TLSDir: filepath.Join(dir, "tls"), StoreDir: filepath.Join(dir, "store"),
		Version: "v0", Now: func() time.Time { return time.Unix(1700000000, 0) },
	}
	testenv.Must(pki.Open(pki.Options{Dir: s.TLSDir, Logger: slog.New(slog.DiscardHandler)}))(t)
	d := testenv.Must(datadir.Open(datadir.Options{DataDir: data, ServerDir: dir, StoreDir: s.StoreDir}))(t)
	testenv.NoError(t, errors.Join(d.RecordVersion(), d.Close()))
	return s
}

// open opens the server's store as it runs beside others; join says where they are.
func (s *Server) open(t *testing.T, cluster string, join ...string) (*raftstore.Store, string) {
	t.Helper()
	d := testenv.Must(datadir.Open(datadir.Options{DataDir: s.DataDir, ServerDir: s.ServerDir, StoreDir: s.StoreDir}))(t)
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	address := l.Addr().String()
	store := testenv.Must(raftstore.Open(t.Context(), raftstore.Options{
		Dir: s.StoreDir, NodeID: d.ServerID(), ClusterID: cluster, Logger: slog.New(slog.DiscardHandler), Join: join,
		Network: &raftstore.Network{Address: address, Listener: l, Dial: func(ctx context.Context, a string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", a)
		}},
	}))(t)
	t.Cleanup(func() { testenv.Check(t, errors.Join(store.Close(context.Background()), d.Close())) })
	return store, address
}

func voters(s *raftstore.Store) (n int) {
	for _, m := range s.Cluster().Members() {
		if m.Voter {
			n++
		}
	}
	return n
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, what, ok)
}

// TestLastOfThreeServersIsRecovered loses two of three servers and goes on with the third.
func TestLastOfThreeServersIsRecovered(t *testing.T) {
	s := newServer(t)
	testenv.WantError(t, testenv.Err(s.PlanRecovery()), "there is no store")
	cluster := testenv.Must(s.cluster())(t)
	// The others are what is lost.
	t.Run("three servers", func(t *testing.T) {
		first, address := newServer(t).open(t, cluster)
		store, _ := s.open(t, cluster, address)
		newServer(t).open(t, cluster, address)
		eventually(t, "three voters", func() error {
			if n := voters(store); n != 3 {
				return fmt.Errorf("%d voters", n)
			}
			return nil
		})
		for i := range 20 {
			testenv.Must(first.Client().Put(t.Context(), fmt.Sprintf("key-%d", i), "value"))(t)
		}
		eventually(t, "the server has everything", func() error {
			if n := store.Status().Keys; n != 20 {
				return fmt.Errorf("%d keys", n)
			}
			return nil
		})
		testenv.WantError(t, testenv.Err(s.PlanRecovery()), "the server runs")
	})

	plan := testenv.Must(s.PlanRecovery())(t)
	if plan.Keys != 20 || len(plan.Members) != 3 || plan.LastIndex == 0 || plan.LastTerm == 0 || plan.Written.IsZero() {
		t.Errorf("the plan: %+v", plan)
	}
	_, kept, err := s.Recover()
	testenv.NoError(t, err)
	testenv.Equal(t, testenv.Must(CheckStore(kept))(t).LastIndex, plan.LastIndex, "the copy:")
	testenv.Fails(t, testenv.Err(os.Stat(filepath.Join(kept, "RESERVE"))), "the copy has the reserve")
	testenv.WantError(t, testenv.Err(s.PlanRecovery()), "only voter")
	store, _ := s.open(t, cluster)
	testenv.NoError(t, store.WaitReady(t.Context()))
	got, err := store.Client().KV.Get(t.Context(), "key-", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || got.Count != 20 || voters(store) != 1 {
		t.Errorf("afterwards: %v, %v, %d voters", got, err, voters(store))
	}
	testenv.Check(t, testenv.Err(store.Client().Put(t.Context(), "new", "value")))
}
