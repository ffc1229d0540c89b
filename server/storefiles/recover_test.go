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

// serverIn is the server with a data directory.
func serverIn(data string) *Server {
	dir := filepath.Join(data, "server")
	return &Server{
		DataDir: data, ServerDir: dir, TLSDir: filepath.Join(dir, "tls"), StoreDir: filepath.Join(dir, "store"),
		Version: "v0", Now: func() time.Time { return time.Unix(1700000000, 0) },
	}
}

// newServer makes a server's folder with its keys.
func newServer(t *testing.T) *Server {
	t.Helper()
	s := serverIn(t.TempDir())
	testenv.Must(pki.Open(pki.Options{Dir: s.TLSDir, Logger: slog.New(slog.DiscardHandler)}))(t)
	d := testenv.Must(datadir.Open(datadir.Options{DataDir: s.DataDir, ServerDir: s.ServerDir, StoreDir: s.StoreDir}))(t)
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

// lastOfThree makes a server with 20 keys that has lost the two others.
func lastOfThree(t *testing.T) (s *Server, cluster string) {
	t.Helper()
	s = newServer(t)
	cluster = testenv.Must(s.cluster())(t)
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
	return s, cluster
}

// TestLastOfThreeServersIsRecovered loses two of three servers and goes on with the third.
func TestLastOfThreeServersIsRecovered(t *testing.T) {
	testenv.WantError(t, testenv.Err(newServer(t).PlanRecovery()), "there is no store")
	s, cluster := lastOfThree(t)
	plan := testenv.Must(s.PlanRecovery())(t)
	testenv.True(t, plan.Keys == 20 && len(plan.Members) == 3 && plan.LastIndex != 0 && plan.LastTerm != 0 && !plan.Written.IsZero(),
		"the plan: %+v", plan)
	_, kept, err := s.Recover()
	testenv.NoError(t, err)
	testenv.Equal(t, testenv.Must(CheckStore(kept))(t).LastIndex, plan.LastIndex, "the former store:")
	testenv.WantError(t, testenv.Err(s.PlanRecovery()), "only voter")
	// Its log, which ends before the snapshot, is dropped when it is opened.
	testenv.Equal(t, testenv.Must(CheckStore(s.StoreDir))(t).Keys, 20, "the recovered store has")
	store, _ := s.open(t, cluster)
	testenv.NoError(t, store.WaitReady(t.Context()))
	got, err := store.Client().KV.Get(t.Context(), "key-", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || got.Count != 20 || voters(store) != 1 {
		t.Errorf("afterwards: %v, %v, %d voters", got, err, voters(store))
	}
	testenv.Check(t, testenv.Err(store.Client().Put(t.Context(), "new", "value")))
}

// TestRecoverTwiceInOneSecond: a second run does not touch what an earlier one, or a restore, kept under the name of
// the same second.
func TestRecoverTwiceInOneSecond(t *testing.T) {
	s, _ := lastOfThree(t)
	earlier := s.StoreDir + ".before-" + s.stamp()
	testenv.NoError(t, errors.Join(os.Mkdir(earlier, 0o700), os.WriteFile(filepath.Join(earlier, "IDENTITY"), []byte("of an earlier run"), 0o600)))
	_, kept, err := s.Recover()
	testenv.Check(t, err)
	testenv.Equal(t, kept, earlier+"-2", "the copy's name:")
	if text, err := os.ReadFile(filepath.Join(earlier, "IDENTITY")); string(text) != "of an earlier run" {
		t.Errorf("the earlier copy has %q, %v", text, err)
	}
}
