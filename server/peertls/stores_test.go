// SPDX-License-Identifier: Apache-2.0

package peertls_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// linesWith are those of a log that hold a text.
func linesWith(log *testenv.Log, text string) (out []string) {
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, text) {
			out = append(out, line)
		}
	}
	return out
}

func openStore(t *testing.T, i *peertls.Identity, name string, join []string) (*raftstore.Store, *testenv.Log, string) {
	t.Helper()
	l, log := listen(t), &testenv.Log{}
	address := l.Addr().String()
	s := testenv.Must(raftstore.Open(t.Context(), raftstore.Options{
		Dir: filepath.Join(t.TempDir(), name), NodeID: name, ClusterID: "c", Join: join, Network: i.Network(address, l),
		Logger: slog.New(slog.NewTextHandler(log, nil)), ElectionTimeout: 10 * time.Second,
	}))(t)
	t.Cleanup(func() { testenv.Check(t, s.Close(context.Background())) })
	return s, log, address
}

// TestStoreOfAnotherClusterIsKeptOut joins two stores, and keeps one out that has another cluster's certificate. Each
// side of that says so in one line, and not with every attempt.
func TestStoreOfAnotherClusterIsKeptOut(t *testing.T) {
	p, other := authorities(t), authorities(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	one, log, address := openStore(t, identity(t, p, "one"), "one", nil)
	two, _, _ := openStore(t, identity(t, p, "two"), "two", []string{address})
	for _, s := range []*raftstore.Store{one, two} {
		testenv.NoError(t, s.WaitReady(ctx))
	}
	testenv.Must(two.Client().Client.Put(ctx, "a", "1"))(t)

	three, otherLog, _ := openStore(t, identity(t, other, "three"), "three", []string{address})
	dialOther := func() error {
		// Who dials checks first, and so is the one who refuses: the other reads an alert.
		refused := linesWith(otherLog, "the other server's certificate was not signed by this cluster's authority for servers")
		alert := linesWith(log, "the other server does not accept this server's certificate")
		if len(refused) == 0 || len(alert) == 0 {
			return fmt.Errorf("%d and %d lines", len(refused), len(alert))
		}
		return nil
	}
	for err := dialOther(); err != nil; err = dialOther() {
		testenv.Require(t, ctx.Err() == nil, "%v; the store said:\n%s\nthe foreign end said:\n%s", err, log, otherLog)
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	waiting, done := context.WithTimeout(ctx, time.Second)
	defer done()
	testenv.Fails(t, three.WaitReady(waiting), "a store of another cluster joined")
	testenv.Equal(t, len(one.Cluster().Members()), 2, "members:")
	// One line in ten seconds, whatever is tried again meanwhile.
	if n := len(linesWith(otherLog, "could not connect to another server")); n > 1+int(patience/(10*time.Second)) {
		t.Errorf("%d lines", n)
	}
}
