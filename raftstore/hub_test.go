// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// TestEveryWatcherIsReached: when compaction overtakes the hub, every watcher
// has to hear of it, whatever it watches.
func TestEveryWatcherIsReached(t *testing.T) {
	view := mvcc.New().Freeze()
	h := newHub(func() *mvcc.View { return view })
	want := make(map[*watcher]bool)
	for _, r := range []*pb.WatchCreateRequest{
		{Key: []byte("a")},
		{Key: []byte("a"), RangeEnd: []byte("b")},
		{Key: []byte("/registry/"), RangeEnd: []byte("/registry0")},
		{Key: []byte{0}, RangeEnd: []byte("a")},
		{Key: []byte{0}, RangeEnd: []byte{0}},
		{Key: []byte("z"), RangeEnd: []byte{0}},
		{Key: []byte{0xff, 0xff}, RangeEnd: []byte{0xff, 0xff, 0}},
	} {
		want[newWatcher(h, r, 0)] = true
	}
	got := make(map[*watcher]bool)
	h.eachWatcher(func(w *watcher) { got[w] = true })
	for w := range want {
		if !got[w] {
			t.Errorf("the watcher of %q to %q is not reached", w.key, w.end)
		}
	}
	if all, _, _ := h.count(); all != len(want) {
		t.Errorf("%d watchers are counted, want %d", all, len(want))
	}
}
