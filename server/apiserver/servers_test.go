// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// servers are the stores of one cluster; an API server of a test uses the first.
type servers []*raftstore.Store

// openServers makes a cluster of three voters on loopback. The first leads.
func openServers(t testing.TB, f *fixture) servers {
	t.Helper()
	var all servers
	for i := range 3 {
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
		name := fmt.Sprintf("s%d", i)
		o := raftstore.Options{
			Dir: filepath.Join(f.dir, "store", name), NodeID: name, ClusterID: "servers", Logger: f.log,
			Network: &raftstore.Network{Address: l.Addr().String(), Listener: l, Dial: func(ctx context.Context, address string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", address)
			}},
			// A machine that is busy with other tests must not hold elections of its own.
			ElectionTimeout: 10 * time.Second,
		}
		if i > 0 {
			o.Join = []string{all[0].Cluster().Members()[0].Address}
		}
		all = append(all, openStore(t, o))
	}
	eventually(t, "three voters", func() error {
		for _, m := range all[0].Cluster().Members() {
			if !m.Voter {
				return fmt.Errorf("%s is none", m.Name)
			}
		}
		return nil
	})
	return all
}

// openStore opens a store until the end of the test and waits until it answers.
func openStore(t testing.TB, o raftstore.Options) *raftstore.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	store := testenv.Must(raftstore.Open(ctx, o))(t)
	t.Cleanup(func() { testenv.Check(t, store.Close(context.Background()), "closing the store") })
	testenv.NoError(t, store.WaitReady(ctx))
	return store
}

// moveLeadership makes a server lead, unless it does, and returns the term.
func (s servers) moveLeadership(ctx context.Context, to int) (term uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var target uint64
	for _, m := range s[to].Cluster().Members() {
		if m.Self {
			target = m.ID
		}
	}
	for i, store := range s {
		if i == to || !store.Status().Leadership.Leader {
			continue
		}
		if err := askToMove(ctx, store, target); err != nil {
			return 0, err
		}
		break
	}
	for ctx.Err() == nil {
		if now := s[to].Status().Leadership; now.Leader {
			return now.Term, nil
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	return 0, fmt.Errorf("server %d does not lead: %w", to, ctx.Err())
}

// askToMove asks a leader through etcd's API, which is the way to name the next one.
func askToMove(ctx context.Context, leader *raftstore.Store, target uint64) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = leader.ServeGRPC(ctx, l) // the client below says what is wrong
	}()
	defer func() { cancel(); <-served }()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{l.Addr().String()}, Context: ctx, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.MoveLeader(ctx, target)
	return err
}
