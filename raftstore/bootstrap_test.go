// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"log/slog"
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
