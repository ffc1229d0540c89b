// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/disk"
)

// TestInterruptedFirstStart starts a store whose first start lost power when
// raft had saved its first term and had not yet written its first entry.
func TestInterruptedFirstStart(t *testing.T) {
	path := t.TempDir()
	d, err := disk.Open(disk.Options{
		Path: path, Identity: disk.Identity{Node: "one"}, Logger: slog.New(slog.DiscardHandler), Clock: clock.RealClock{},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Vars.SetUint64([]byte("CurrentTerm"), 1); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Options{Dir: path})
	if _, err := s.Client().Put(testContext(t), "/a", "1"); err != nil {
		t.Fatal(err)
	}
}

// A server that is to join others must not begin a cluster of its own at its
// next start, be it that it has not found them yet, or that nobody tells it of
// them any more.
func TestJoiningIsRemembered(t *testing.T) {
	ctx := testContext(t)
	nobody := tcpNetwork(t)
	if err := nobody.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	o := Options{Dir: dir, NodeID: "one", ClusterID: "test", Logger: testLog("one")}
	for i, join := range [][]string{{nobody.Address}, nil, nil} {
		o.Network, o.Join = tcpNetwork(t), join
		if i == 2 { // a note that is damaged is not used
			if err := os.Truncate(filepath.Join(dir, "PEERS"), 3); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		s.peers.savePeers()
		if servers := s.raft.GetConfiguration().Configuration().Servers; len(servers) > 0 {
			t.Errorf("it began a cluster: %v", servers)
		}
		if known := s.peers.known(); i < 2 && !slices.Equal(known, []string{nobody.Address}) {
			t.Errorf("it knows of %v", known)
		}
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
