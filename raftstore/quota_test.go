// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/deleting"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
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
		testenv.Require(t, full(), "a store over its quota takes more")
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
		testenv.True(t, s.Status().Compacted <= 1, "compacted to %d, which frees nothing", s.Status().Compacted)
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
	h.quota = func() int64 { return 16 << 20 }
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

// stageOfQuotas is a stage whose servers have the quotas of their names, in bytes, and else 64 MiB.
func stageOfQuotas(t *testing.T, n int, quotas map[string]int64, play func(c *cluster)) {
	stage(t, 1, n, func(o *Options) {
		o.QuotaBytes, o.HistoryBytes = 64<<20, 1<<20
		if q := quotas[o.NodeID]; q > 0 {
			o.QuotaBytes = q
		}
	}, play)
}

// TestSmallestQuotaOfVoters: the leader takes the smallest quota of the voters, whichever server it is and whichever
// server is written through. Each refusal is for one write, not for those that share its batch.
func TestSmallestQuotaOfVoters(t *testing.T) {
	for _, small := range []string{"a", "b"} {
		t.Run(small, func(t *testing.T) {
			stageOfQuotas(t, 3, map[string]int64{small: 8 << 20}, func(c *cluster) {
				leader := c.nodes[0]
				testenv.Require(c, leader.leads(), "the first server does not lead")
				through := c.nodes[2].running()
				kv := through.Client().KV
				testenv.NoError(c, testenv.Err(kv.Put(c.ctx, "/first", "x")))
				c.pass(2 * diskSpaceTick)
				n := fillUp(c, kv, string(noise(100<<10)))
				if total := leader.running().Status().TotalBytes; total > 8<<20 || total < 7<<20 {
					t.Errorf("the leader has %d bytes", total)
				}
				testenv.Equal(t, leader.running().Health().Refusing(), metrics.RefusingQuota, "the leader refuses for:")
				for _, n := range c.nodes {
					testenv.Equal(t, n.running().Health().Quota(), 8<<20, "the cluster's quota at %s", n.name)
				}
				// All in one batch: what removes is done, what does not fit in is not.
				put := mvcc.Command{Request: &pb.PutRequest{Key: []byte("/more"), Value: []byte(noise(100 << 10))}}
				remove := mvcc.Command{Request: &pb.DeleteRangeRequest{Key: []byte("/0"), RangeEnd: []byte("/:")}}
				entry := mvcc.NewEntry(nil)
				for _, command := range []mvcc.Command{put, remove, put} {
					var err error
					entry, err = mvcc.AppendCommand(entry, command, 1)
					testenv.NoError(c, err)
				}
				results, err := peersOf(through).forwarder.forward(entry, nil)()
				testenv.Require(c, err == nil && len(results) == 3, "%v, %v", results, err)
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
				testenv.Equal(t, leader.running().Health().Refusing(), metrics.RefusingNone, "after the deletion the leader refuses for:")
			})
		})
	}
}

// TestFollowersQuotaIsNotChecked: a server without a vote passes on what its own quota has no room for.
func TestFollowersQuotaIsNotChecked(t *testing.T) {
	stageOfQuotas(t, 2, map[string]int64{"b": 4 << 20}, func(c *cluster) {
		follower := c.nodes[1].running()
		value := string(noise(100 << 10))
		for i := range 60 {
			testenv.NoError(c, testenv.Err(follower.Client().KV.Put(c.ctx, fmt.Sprintf("/%03d", i), value)), "write %d", i)
		}
		testenv.Equal(t, follower.Health().Refusing(), metrics.RefusingNone, "the follower refuses for:")
	})
}

// TestTooSmallServerIsRefused: a server whose quota is under 125% of the keys does not become a member, and says why.
// It is admitted when the keys have become fewer.
func TestTooSmallServerIsRefused(t *testing.T) {
	stageOfQuotas(t, 1, map[string]int64{"small": 8 << 20}, func(c *cluster) {
		kv := c.leader().running().Client().KV
		value := string(noise(100 << 10))
		for i := range 70 { // 7 of the 8 MB
			testenv.NoError(c, testenv.Err(kv.Put(c.ctx, fmt.Sprintf("/%03d", i), value)))
		}
		small := c.add("small")
		small.start("a")
		c.pass(10 * time.Second)
		testenv.Equal(t, len(c.leader().running().Cluster().Members()), 1, "members:")
		testenv.Contains(t, small.running().Health().JoinRefused(), "Give its machine or control group more memory", "the small server's reason:")
		testenv.Must(kv.Delete(c.ctx, "/0", clientv3.WithPrefix()))(t)
		c.eventually("the small server is a member", 10*time.Second, func() bool {
			return len(c.leader().running().Cluster().Members()) == 2 && small.running().Health().JoinRefused() == ""
		})
	})
}

// TestShrunkServerDoesNotStopWrites: a voter that comes back with less memory than the store needs does not lower the
// cluster's quota below what is there. Once the keys have become fewer, its quota counts.
func TestShrunkServerDoesNotStopWrites(t *testing.T) {
	quotas := map[string]int64{}
	stageOfQuotas(t, 3, quotas, func(c *cluster) {
		leader := c.leader()
		kv := leader.running().Client().KV
		value := string(noise(100 << 10))
		write := func(from, to int) {
			c.Helper()
			for i := from; i < to; i++ {
				testenv.NoError(c, testenv.Err(kv.Put(c.ctx, fmt.Sprintf("/%03d", i), value)), "write %d", i)
			}
		}
		write(0, 160)
		shrunk := c.others(leader)[0]
		shrunk.stop()
		quotas[shrunk.name] = 8 << 20
		shrunk.start()
		c.ready(shrunk)
		for i := range 20 {
			write(160+i, 161+i)
			c.pass(time.Second)
		}
		testenv.Equal(t, leader.running().Health().Quota(), 64<<20, "the cluster's quota:")
		found := false
		for _, m := range leader.running().Cluster().Survey(c.ctx) {
			found = found || m.Name == shrunk.name && m.Quota == 8<<20
		}
		testenv.True(t, found, "the leader does not see the quota of %s", shrunk.name)
		for i := 40; i < 180; i++ { // 4 MB are left: the quota is 125% of it and more
			testenv.NoError(c, testenv.Err(kv.Delete(c.ctx, fmt.Sprintf("/%03d", i))))
		}
		c.eventually("the small quota counts", time.Minute, func() bool {
			testenv.NoError(c, testenv.Err(kv.Put(c.ctx, "/again", "x")))
			c.pass(time.Second)
			return leader.running().Health().Quota() == 8<<20
		})
	})
}

// TestSmallestQuota: which quotas count, while a leader remembers which did not.
func TestSmallestQuota(t *testing.T) {
	voters := map[raft.ServerID]*voterQuota{}
	for i, step := range []struct {
		a, b, live, want int64
	}{
		{0, 0, 10, 0},        // nothing is known
		{320, 0, 10, 320},    // b does not say
		{320, 640, 310, 320}, // the smallest is nearly used up, and counts
		{320, 640, 330, 320}, // so it does while the reserve is used
		{320, 640, 331, 640}, // more is there: it came back with less memory
		{320, 640, 300, 640}, // it would be used up soon
		{320, 640, 256, 320}, // the keys are 80% of it
		{32, 64, 100, 64},    // none is enough
		{32, 128, 100, 128},
	} {
		for id, q := range map[raft.ServerID]int64{"a": step.a, "b": step.b} {
			if voters[id] == nil && q > 0 {
				voters[id] = &voterQuota{}
			}
			if q > 0 {
				voters[id].bytes = q
			}
		}
		testenv.Equal(t, smallestQuota(voters, step.live), step.want, "step %d:", i)
	}
}

// TestQuotaIsNotExceededByManyWritesAtOnce: what is under way counts.
func TestQuotaIsNotExceededByManyWritesAtOnce(t *testing.T) {
	const quota = 16 << 20
	s := openStore(t, Options{Dir: t.TempDir(), QuotaBytes: quota})
	ctx, value := testContext(t), noise(200<<10)
	var writing sync.WaitGroup
	for i := range 200 {
		writing.Go(func() {
			_, err := s.api.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "/%03d", i), Value: []byte(value)})
			testenv.False(t, err != nil && !errors.Is(err, rpctypes.ErrGRPCNoSpace), "%v", err)
		})
	}
	writing.Wait()
	testenv.True(t, s.Status().TotalBytes <= quota && s.Status().TotalBytes >= quota-(1<<20),
		"%d bytes of %d", s.Status().TotalBytes, quota)
	testenv.Equal(t, s.quota.underWay.Load(), 0, "under way:")
}

// steps writes as steps of a deletion do.
func steps(ctx context.Context) context.Context {
	ctx, mark := deleting.With(ctx)
	mark.Set(true)
	return ctx
}

// TestDeletingAtAFullQuota: steps of a deletion that lengthen little use the reserve, through whichever server, and no
// other write does. The reserve has an end, and the history that the steps leave goes.
func TestDeletingAtAFullQuota(t *testing.T) {
	const quota = 16 << 20
	stage(t, 1, 3, func(o *Options) { o.QuotaBytes = quota }, func(c *cluster) {
		leader := c.leader()
		fill := leader.running().Client().KV
		fillUp(c, fill, string(noise(100<<10)))
		for i := 0; ; i++ {
			if _, err := fill.Put(c.ctx, fmt.Sprintf("/pod%04d", i), string(noise(4<<10))); err != nil {
				testenv.True(t, errors.Is(err, rpctypes.ErrNoSpace), "%v", err)
				break
			}
		}
		for _, n := range c.nodes {
			kv := n.running().Client().KV
			refused := func(ctx context.Context, key string, size int, what string) {
				t.Helper()
				if _, err := kv.Put(ctx, key, string(noise(size))); !errors.Is(err, rpctypes.ErrNoSpace) {
					t.Errorf("%s, %s: %v", n.name, what, err)
				}
			}
			refused(c.ctx, "/pod0000", 4<<10, "another write")
			refused(steps(c.ctx), "/pod0000", 6<<10, "a step that lengthens much")
			refused(steps(c.ctx), "/none", 6<<10, "a new key")
			for i := range 200 { // 800 KB of history, which is more than the reserve
				_, err := kv.Put(steps(c.ctx), "/pod0000", string(noise(4<<10+100)))
				testenv.NoError(c, err, "%s, step %d", n.name, i)
				c.pass(time.Millisecond)
			}
		}
		testenv.True(t, leader.running().Status().TotalBytes <= quota+quota/reserveShare,
			"%d bytes of %d", leader.running().Status().TotalBytes, quota)
	})
}

// TestDeletingThroughALeaderOfAnEarlierVersion: it does not know what a follower says of a step, and takes it for
// another write.
func TestDeletingThroughALeaderOfAnEarlierVersion(t *testing.T) {
	stage(t, 1, 3, func(o *Options) { o.QuotaBytes = 16 << 20 }, func(c *cluster) {
		leader := c.leader()
		delete(peersOf(leader.running()).calls, callDelete)
		kv := c.others(leader)[0].running().Client().KV
		testenv.Check(t, testenv.Err(kv.Put(steps(c.ctx), "/a", "x")), "a step")
		fillUp(c, kv, string(noise(100<<10)))
		if _, err := kv.Put(steps(c.ctx), "/000", string(noise(100<<10))); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("a step at a full quota: %v", err)
		}
	})
}
