// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// A server whose store cannot reach the others since it started tells that much.
func TestStatusOfAServerThatHasNotCaughtUp(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	s, err := raftstore.Open(ctx, raftstore.Options{
		Dir: filepath.Join(dir, "store"), NodeID: "two", ClusterID: "c", Logger: slog.New(slog.DiscardHandler), Join: []string{"127.0.0.1:1"},
		Network: &raftstore.Network{Address: l.Addr().String(), Listener: l, Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address) // no process listens there
		}},
	})
	testenv.NoError(t, err)
	socket := filepath.Join(dir, "s")
	u := testenv.Must(net.Listen("unix", socket))(t)
	served := make(chan error, 1)
	go func() { served <- s.ServeGRPC(ctx, u) }()
	t.Cleanup(func() {
		testenv.Check(t, s.Close(context.Background()))
		testenv.Check(t, <-served)
	})
	c := testenv.Must(clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()}))(t)
	defer func() { _ = c.Close() }()
	st := testenv.Must(askStore(ctx, c, config.Paths{StoreDir: filepath.Join(dir, "store")}))(t)
	problems := strings.Join(st.Problems, "\n")
	if st.Keys != nil || !strings.Contains(problems, "no leader") || !strings.Contains(problems, "cannot be read") || len(st.Problems) != 2 {
		t.Errorf("%v keys, problems:\n%s", st.Keys, problems)
	}
}

// Only this server's store is asked: where there are others, the output does not say of them that they are well.
func TestStoreStatusOfOneAmongServers(t *testing.T) {
	for _, c := range []struct {
		status storeStatus
		want   string
	}{
		{storeStatus{Members: []storeMember{{Name: "one", Self: true}}}, "\nNothing is wrong.\n"},
		{
			storeStatus{Members: []storeMember{{Name: "one", Self: true}, {Name: "two"}}},
			"\nNothing is wrong with this server's store. coracle status asks the other servers too.\n",
		},
		{storeStatus{Members: []storeMember{{Name: "one", Self: true}, {Name: "two"}}, Problems: []string{"it is full"}}, "\n! it is full\n"},
	} {
		var b strings.Builder
		testenv.NoError(t, c.status.print(&b, time.Now()))
		testenv.True(t, strings.HasSuffix(b.String(), c.want), "%s\nwant at its end %q", b.String(), c.want)
	}
}
