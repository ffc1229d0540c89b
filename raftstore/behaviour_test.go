// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// until waits for a condition that other goroutines bring about.
func until(ctx context.Context, t testing.TB, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestLeasesExpire(t *testing.T) {
	ctx, clock := testContext(t), testingclock.NewFakeClock(time.Unix(1e9, 0))
	dir := t.TempDir()
	s := openStore(t, Options{Dir: dir, Clock: clock})
	c := s.Client()
	short, err1 := c.Grant(ctx, 10)
	const longTTL = 1_000_000 // on a busy machine the clock below goes on for minutes until the short one has gone
	long, err2 := c.Grant(ctx, longTTL)
	testenv.NoError(t, errors.Join(err1, err2))
	mustPut(ctx, t, c.Client, "/short", "x", clientv3.WithLease(short.ID))
	mustPut(ctx, t, c.Client, "/long", "x", clientv3.WithLease(long.ID))
	watch := c.Watch(ctx, "/short")
	clock.Step(9 * time.Second)
	if expired, _ := s.lessor.expiredLeases(); len(expired) != 0 {
		t.Fatalf("expired early: %v", expired)
	}
	testenv.Must(c.KeepAliveOnce(ctx, short.ID))(t)
	clock.Step(9 * time.Second)
	if expired, _ := s.lessor.expiredLeases(); len(expired) != 0 {
		t.Fatalf("expired although renewed: %v", expired)
	}
	until(ctx, t, "expired", func() bool {
		clock.Step(time.Second)
		_, ok := s.lessor.remainingTTL(int64(short.ID))
		return !ok
	})
	testenv.Equal(t, collect(ctx, t, watch, 1)[0].Type, clientv3.EventTypeDelete, "")
	// A new leader, here after a restart, gives a lease its whole time again.
	testenv.NoError(t, s.Close(ctx))
	s = openStore(t, Options{Dir: dir, Clock: clock})
	info, err := s.Client().TimeToLive(ctx, long.ID, clientv3.WithAttachedKeys())
	testenv.False(t, err != nil || info.TTL != longTTL || len(info.Keys) != 1, "a TTL of %d, keys %q, %v", info.TTL, info.Keys, err)
}

// TestIdleStoreWritesNothing lets a day go by over a store with a little of
// everything in it.
func TestIdleStoreWritesNothing(t *testing.T) {
	ctx, clock := testContext(t), testingclock.NewFakeClock(time.Unix(1e9, 0))
	s := openStore(t, Options{Dir: t.TempDir(), Clock: clock})
	c := s.Client()
	for i := range 100 {
		mustPut(ctx, t, c.Client, fmt.Sprint("/k/", i%10), "x")
	}
	for range 10 {
		c.Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithProgressNotify())
	}
	// The history goes once it is an hour over its age.
	until(ctx, t, "compacted", func() bool { clock.Step(time.Minute); return s.Status().Compacted > 0 })
	before := s.replica.raft.LastIndex()
	for range 24 * 60 {
		until(ctx, t, "all waiting", clock.HasWaiters)
		clock.Step(time.Minute)
	}
	if after := s.replica.raft.LastIndex(); after != before {
		t.Errorf("%d log entries in a day without a request", after-before)
	}
}

func TestRestartFromSnapshot(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s := openStore(t, Options{Dir: dir})
	c := s.Client()
	lease := testenv.Must(c.Grant(ctx, 1000))(t)
	first := mustPut(ctx, t, c.Client, "/a", "1", clientv3.WithLease(lease.ID))
	for i := range 2000 {
		mustPut(ctx, t, c.Client, "/b", fmt.Sprint(i))
	}
	testenv.NoError(t, s.replica.raft.Snapshot().Error())
	if at, err := s.replica.dir.Log.FirstIndex(); err != nil || at < 1000 {
		t.Fatalf("the log still starts with entry %d, %v", at, err)
	}
	last := mustPut(ctx, t, c.Client, "/a", "2")
	testenv.NoError(t, s.Close(ctx))
	c = openStore(t, Options{Dir: dir}).Client()
	got, err := c.KV.Get(ctx, "/a", clientv3.WithRev(last-1))
	testenv.Require(t, err == nil && len(got.Kvs) == 1 && string(got.Kvs[0].Value) == "1" && got.Header.Revision == last,
		"%v, %v", got, err)
	events := collect(ctx, t, c.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV()), 2002)
	if e := events[2001]; string(e.PrevKv.Value) != "1" || string(e.Kv.Value) != "2" {
		t.Errorf("%v", e)
	}
}

// TestSnapshotsBoundTheLog writes more than the log may hold.
func TestSnapshotsBoundTheLog(t *testing.T) {
	ctx := testContext(t)
	s := openStore(t, Options{Dir: t.TempDir()})
	c := s.Client()
	value := noise(400 << 10)
	for range minLogBytes/len(value) + 10 {
		rev := mustPut(ctx, t, c.Client, "/k", value)
		testenv.Must(c.Compact(ctx, rev))(t)
	}
	until(ctx, t, "snapshot", func() bool {
		list, err := s.replica.dir.Snapshots.List()
		return err == nil && len(list) == 1
	})
}

// TestManyWriters checks that every acknowledged write has a revision of its
// own, in the order of acknowledgement for each client, although many share a
// log entry.
func TestManyWriters(t *testing.T) { everywhere(t, testManyWriters) }

func testManyWriters(ctx context.Context, t *testing.T, s *Store) {
	const writers, each = 64, 50
	before := s.replica.raft.LastIndex()
	revisions := make([][]int64, writers)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			c := s.Client()
			for i := range each {
				resp, err := c.Put(ctx, fmt.Sprintf("/w/%d", w), fmt.Sprint(i))
				if err != nil {
					t.Error(err)
					return
				}
				revisions[w] = append(revisions[w], resp.Header.Revision)
			}
		})
	}
	all.Wait()
	seen := map[int64]bool{}
	for w, revs := range revisions {
		for i, rev := range revs {
			testenv.Require(t, !seen[rev] && (i == 0 || rev > revs[i-1]), "writer %d got revisions %v", w, revs)
			seen[rev] = true
		}
		got, err := s.Client().KV.Get(ctx, fmt.Sprintf("/w/%d", w))
		testenv.Require(t, err == nil && string(got.Kvs[0].Value) == fmt.Sprint(each-1) && got.Kvs[0].Version == each, "%v, %v", got, err)
	}
	if entries := s.replica.raft.LastIndex() - before; entries > writers*each/2 {
		t.Errorf("%d writes took %d log entries", writers*each, entries)
	}
}
