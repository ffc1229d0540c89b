// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestQuotaOfMemory(t *testing.T) {
	const mb = 1 << 20
	for memory, want := range map[int64]int64{
		64 * mb: 16 * mb, 224 * mb: 16 * mb, 384 * mb: 64 * mb, 512 * mb: (512 - 192) * mb / 3, 2048 * mb: (2048 - 192) * mb / 3, 64 << 30: 2 << 30,
	} {
		if got := quotaOf(memory); got != want {
			t.Errorf("%d MB: %d MB, want %d", memory/mb, got/mb, want/mb)
		}
		if got := quotaOf(memory); memory > 240*mb && got*perQuotaByte+besideStore > memory {
			t.Errorf("%d MB: a quota of %d MB may come to more", memory/mb, got/mb)
		}
	}
}

// TestQuotaIsSaidOnce: who reads the log learns that writes are refused, and
// when they are no longer, once each.
func TestQuotaIsSaidOnce(t *testing.T) {
	ctx := testContext(t)
	said := &testenv.Log{}
	s := openStore(t, Options{Dir: t.TempDir(), QuotaBytes: 1 << 20, Logger: slog.New(slog.NewTextHandler(said, nil))})
	c := s.Client()
	value := noise(100 << 10)
	full := func() bool {
		for i := range 20 {
			if _, err := c.Put(ctx, fmt.Sprint("/", i), value); errors.Is(err, rpctypes.ErrNoSpace) {
				return true
			} else if err != nil {
				t.Fatal(err)
			}
		}
		return false
	}
	for range 2 { // the second time nothing may be said again
		if !full() {
			t.Fatal("a store over its quota takes more")
		}
	}
	testenv.Must(c.Client.Delete(ctx, "/", clientv3.WithPrefix()))(t)
	rev := s.Status().Revision
	if _, err := c.Client.Compact(ctx, rev); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatal(err)
	}
	mustPut(ctx, t, c.Client, "/again", "x")
	for _, want := range []string{"the store's quota is used up", "within its quota again"} {
		if n := strings.Count(said.String(), want); n != 1 {
			t.Errorf("%q was said %d times", want, n)
		}
	}
}

// fillUp writes to a store until its quota is used up, and returns how many keys there are.
func fillUp(c *cluster, kv clientv3.KV, value string) (n int) {
	for ; ; n++ {
		if _, err := kv.Put(c.ctx, fmt.Sprintf("/%03d", n), value); errors.Is(err, rpctypes.ErrNoSpace) {
			return n
		} else if err != nil {
			c.Fatal(err)
		}
	}
}

// TestHistoryGoesBeforeWritesAreRefused: who deletes what is not needed, as the log advises, can write again at once,
// although what was deleted is less history than is allowed where there is room for it. Old revisions stay as long as
// there is.
func TestHistoryGoesBeforeWritesAreRefused(t *testing.T) {
	stage(t, 1, 1, func(o *Options) { o.QuotaBytes = 16 << 20 }, func(c *cluster) {
		s := c.leader().running()
		kv := s.Client().KV
		value := string(noise(100 << 10))
		fillUp(c, kv, value)
		if compacted := s.Status().Compacted; compacted > 1 {
			t.Errorf("compacted to %d, which frees nothing", compacted)
		}
		for i := range 20 { // 2 MB of 16; 4 MiB of history are allowed
			testenv.Must(kv.Delete(c.ctx, fmt.Sprintf("/%03d", i)))(c)
		}
		c.pass(time.Second)
		testenv.Check(t, testenv.Err(kv.Put(c.ctx, "/small", "x")), "a small write, after 2 MB of 16 were deleted")
		// Overwritten, the rest makes more history than the keys leave room for.
		for i := 20; i < 100; i++ {
			testenv.NoError(c, testenv.Err(kv.Put(c.ctx, fmt.Sprintf("/%03d", i), value)), "overwrite %d", i)
			c.pass(time.Millisecond)
		}
	})
}

// TestFullStoreCompactsSeldom: where the keys fill the quota, small writes do not bring a compaction each.
func TestFullStoreCompactsSeldom(t *testing.T) {
	h := newCompactorState(t, 4<<20)
	h.quota = 16 << 20
	for i := range 16 { // just below the quota
		h.state.Apply(&pb.PutRequest{Key: fmt.Appendf(nil, "/live%d", i), Value: bytes.Repeat([]byte("x"), 1<<20-1<<10)})
	}
	woken := 0
	for range 1000 {
		h.write(1, 1<<10)
		if h.compactIfWoken() {
			woken++
		}
	}
	if woken < 2 || woken > 12 { // 1 MB of history, of which an eighth goes at a time
		t.Errorf("woken %d times", woken)
	}
}

// TestLeadersQuota: what a follower forwards is measured against the leader's quota too. Each refusal is for one write,
// not for those that share its batch.
func TestLeadersQuota(t *testing.T) {
	first := true
	stage(t, 1, 3, func(o *Options) {
		o.QuotaBytes, o.HistoryBytes = 1<<30, 1<<20
		if first {
			o.QuotaBytes = 8 << 20
		}
		first = false
	}, func(c *cluster) {
		leader := c.nodes[0]
		if !leader.leads() {
			c.Fatal("the first server does not lead")
		}
		through := c.nodes[1].running()
		kv := through.Client().KV
		n := fillUp(c, kv, string(noise(100<<10)))
		if total := leader.running().Status().TotalBytes; total > 9<<20 {
			t.Errorf("the leader has %d bytes", total)
		}
		// All in one batch: what removes is done, what adds is not.
		put := mvcc.Command{Request: &pb.PutRequest{Key: []byte("/more")}}
		remove := mvcc.Command{Request: &pb.DeleteRangeRequest{Key: []byte("/"), RangeEnd: []byte("0")}}
		entry := mvcc.NewEntry(nil)
		for _, command := range []mvcc.Command{put, remove, put} {
			var err error
			entry, err = mvcc.AppendCommand(entry, command)
			testenv.NoError(c, err)
		}
		results, err := peersOf(through).forwarder.forward(entry)()
		if err != nil || len(results) != 3 {
			c.Fatalf("%v, %v", results, err)
		}
		for i := range results {
			if got := results[i].Err; (got == nil) != (i == 1) || got != nil && !errors.Is(got, rpctypes.ErrGRPCNoSpace) {
				t.Errorf("command %d: %v", i, got)
			}
		}
		if gone, ok := results[1].Response.(*pb.DeleteRangeResponse); !ok || gone.Deleted != int64(n) {
			t.Errorf("%v instead of %d deletions", results[1].Response, n)
		}
		c.pass(time.Second)
		testenv.Check(t, testenv.Err(kv.Put(c.ctx, "/again", "x")), "after the deletion")
	})
}
