// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// history is a state that a compactor looks at, and a time that moves.
type history struct {
	*compactor
	state *mvcc.State
	now   time.Time
}

func newHistory(age time.Duration, limit int64) *history {
	h := &history{state: mvcc.New(), now: time.Unix(1e9, 0)}
	h.compactor = &compactor{age: age, bytes: limit, view: func() *mvcc.View { return h.state.Freeze() }}
	return h
}

func (h *history) write(n, size int) {
	for i := range n {
		h.state.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/%d", i%10), Value: bytes.Repeat([]byte("x"), size)})
	}
}

// minutes lets time pass, and returns the revision compacted to, if any.
func (h *history) minutes(n int) int64 {
	var last int64
	for range n {
		h.now = h.now.Add(time.Minute)
		if to := h.due(h.now); to > 0 {
			last = to
			h.state.Apply(&pb.CompactionRequest{Revision: to})
		}
	}
	return last
}

func TestCompactionByAge(t *testing.T) {
	h := newHistory(10*time.Minute, 1<<40)
	h.minutes(1)
	h.write(1000, 10<<10) // about 10 MB
	rev := h.state.Freeze().Revision()
	if to := h.minutes(1); to != 0 {
		t.Fatalf("compacted to %d at once", to)
	}
	h.write(10, 10)
	if to := h.minutes(8); to != 0 {
		t.Fatalf("compacted to %d before its time", to)
	}
	if to := h.minutes(3); to < rev-1 || to > rev+10 {
		t.Fatalf("compacted to %d, want about %d", to, rev)
	}
}

func TestLittleHistoryWaits(t *testing.T) {
	h := newHistory(10*time.Minute, 1<<40)
	h.write(100, 100)
	h.minutes(1)
	if to := h.minutes(30); to != 0 {
		t.Fatalf("compacted to %d for a few kilobytes", to)
	}
	h.write(1, 100)
	if to := h.minutes(60); to == 0 {
		t.Fatal("not compacted after an hour")
	}
	// Once compacted, an idle store is left alone.
	h.minutes(120)
	if to := h.minutes(600); to != 0 {
		t.Fatalf("compacted to %d without a write", to)
	}
}

func TestCompactionBySize(t *testing.T) {
	h := newHistory(time.Hour, 1<<20)
	for range 50 {
		h.write(100, 1<<10)
		h.minutes(1)
		if st := h.state.Freeze().Stats(); st.TotalBytes-st.LiveBytes > 2<<20 {
			t.Fatalf("%d bytes of history", st.TotalBytes-st.LiveBytes)
		}
	}
}
