// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/testenv"
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
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	return &Network{
		Address: l.Addr().String(), Listener: l,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	}
}

// electionOfTests is the election timeout of clusters on loopback: a busy machine keeps a leader waiting for longer
// than the usual one, and these tests want it to stay.
const electionOfTests = 3 * time.Second

// openCluster makes a cluster of n servers on loopback.
func openCluster(t testing.TB, n int) []*Store { return openClusterOf(t, n, func(*Options) {}) }

// openSteady makes a cluster of n servers whose first one goes on leading, however busy the machine is.
func openSteady(t testing.TB, n int) []*Store {
	return openClusterOf(t, n, func(o *Options) { o.ElectionTimeout = 10 * time.Second })
}

// openClusterOf makes a cluster of n servers with other options.
func openClusterOf(t testing.TB, n int, tune func(*Options)) []*Store {
	dir := t.TempDir()
	var stores []*Store
	for i := range n {
		o := Options{
			Dir: filepath.Join(dir, strconv.Itoa(i)), NodeID: fmt.Sprintf("s%d", i), ClusterID: "test",
			Logger: testLog(strconv.Itoa(i)), Network: tcpNetwork(t),
		}
		if _, measured := t.(*testing.B); !measured {
			o.ElectionTimeout = electionOfTests
		}
		if i > 0 {
			o.Join = []string{string(stores[0].replica.address)}
		}
		tune(&o)
		s := testenv.Must(Open(t.Context(), o))(t)
		t.Cleanup(func() { testenv.Check(t, s.Close(context.Background())) })
		testenv.NoError(t, s.WaitReady(t.Context()))
		stores = append(stores, s)
	}
	want := n - (n+1)%2
	until(testContext(t), t, "the right number of votes", func() bool {
		voters := 0
		for _, m := range stores[0].cluster.Members() {
			if m.Voter {
				voters++
			}
		}
		return voters == want
	})
	return stores
}

// transferBetween makes another store lead, as connectivity.go does.
func transferBetween(ctx context.Context, from, to *Store) error {
	return transferTo(ctx, from.replica, from.replication, to.replica.memberID)
}

// peersOf is what a store with a network has of the others.
func peersOf(s *Store) *clustered { return s.replication.hooks.(*clustered) }

func TestThreeServers(t *testing.T) {
	stores := openCluster(t, 3)
	for i, s := range stores {
		c := s.Client().Client
		key := fmt.Sprintf("k%d", i)
		put := testenv.Must(c.Put(t.Context(), key, "v"))(t)
		for _, other := range stores {
			got := testenv.Must(other.Client().KV.Get(t.Context(), key))(t)
			testenv.Require(t, len(got.Kvs) == 1 && got.Kvs[0].ModRevision == put.Header.Revision,
				"through another server: %v, after %v", got, put)
		}
		got, err := c.Get(t.Context(), key, clientv3.WithSerializable())
		testenv.Require(t, err == nil && len(got.Kvs) == 1, "a server does not know what was written through it: %v, %v", got, err)
	}
}

// What etcd's maintenance calls say is true of every server.
func TestMaintenanceOfThree(t *testing.T) {
	ctx, stores := testContext(t), openCluster(t, 3)
	var clients []*clientv3.Client
	for _, s := range stores {
		clients = append(clients, dial(t, s))
	}
	rev := mustPut(ctx, t, clients[2], "/a", "1")
	leads := make(map[uint64]bool)
	for i, c := range clients {
		endpoint := c.Endpoints()[0]
		info, err := c.Status(ctx, endpoint)
		if err != nil || info.Header.MemberId != stores[i].replica.memberID || info.IsLearner || len(info.Errors) > 0 {
			t.Errorf("%+v, %v", info, err)
			continue
		}
		leads[info.Leader] = true
		hash, err := c.HashKV(ctx, endpoint, rev)
		if first, err1 := clients[0].HashKV(ctx, clients[0].Endpoints()[0], rev); err != nil || err1 != nil || hash.Hash != first.Hash {
			t.Errorf("hashes %v, %v, %v, %v", hash, first, err, err1)
		}
		testenv.Equal(t, len(testenv.Must(c.MemberList(ctx))(t).Members), 3, "")
		backup := testenv.Must(c.Snapshot(ctx))(t)
		dir := filepath.Join(t.TempDir(), "restored")
		blob, err := io.ReadAll(backup)
		if err == nil {
			err = Restore(Options{Dir: dir, Logger: testLog("restored")}, bytes.NewReader(blob), 0)
		}
		testenv.Check(t, err, "a backup of server %d", i)
	}
	testenv.False(t, len(leads) != 1 || !leads[stores[0].replica.memberID], "leaders: %v", leads)
	testenv.Check(t, testenv.Err(clients[0].MoveLeader(ctx, stores[2].replica.memberID)), "move the leader")
	until(ctx, t, "another leads", func() bool { return stores[2].Status().Leadership.Leader })
	testenv.Fails(t, testenv.Err(clients[0].MoveLeader(ctx, stores[1].replica.memberID)), "a follower moved the leader")
}
