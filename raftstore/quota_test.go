// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
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
	said := &text{}
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
	if _, err := c.Client.Delete(ctx, "/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
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

// text is a log's, for those who look at it while it is written.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// TestHistoryGoesBeyondTheQuota: who deletes what is not needed, as the log advises, can write again, although what was
// deleted is too little history for a compaction by size.
func TestHistoryGoesBeyondTheQuota(t *testing.T) {
	stage(t, 1, 1, func(o *Options) { o.QuotaBytes = 16 << 20 }, func(c *cluster) {
		kv := c.leader().running().Client().KV
		value := string(noise(100 << 10))
		for n := 0; ; n++ {
			if _, err := kv.Put(c.ctx, fmt.Sprintf("/%03d", n), value); errors.Is(err, rpctypes.ErrNoSpace) {
				break
			} else if err != nil {
				c.Fatal(err)
			}
		}
		c.pass(20 * time.Minute)
		for i := range 20 { // 2 MB of 16; 4 MiB of history are allowed
			if _, err := kv.Delete(c.ctx, fmt.Sprintf("/%03d", i)); err != nil {
				c.Fatal(err)
			}
		}
		c.pass(11 * time.Minute)
		if _, err := kv.Put(c.ctx, "/small", "x"); err != nil {
			c.Errorf("a small write, two compactions after 2 MB of 16 were deleted: %v", err)
		}
	})
}
