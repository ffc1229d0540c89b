// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// A server that was restarted has an old state until raft has sent it what is
// committed. Who asks it meanwhile waits, also for a serializable read; and a
// watch from now on begins after what was acknowledged before.
func TestRestartedServerIsNotReadTooEarly(t *testing.T) {
	for face, connect := range map[string]func(testing.TB, *raftstore.Store) *clientv3.Client{
		"native": func(_ testing.TB, s *raftstore.Store) *clientv3.Client { return s.Client().Client }, "grpc": raftstore.Dial,
	} {
		t.Run(face, func(t *testing.T) {
			ctx, dir := raftstore.TestContext(t), t.TempDir()
			s := raftstore.OpenStore(t, raftstore.Options{Dir: dir})
			var last int64
			for i := range 10 {
				last = raftstore.MustPut(ctx, t, s.Client().Client, "/a", fmt.Sprint(i))
			}
			testenv.NoError(t, s.Close(ctx))
			faults := &diskfaults.Faults{}
			faults.DelayFlushes(300 * time.Millisecond) // its vote takes so long
			s = testenv.Must(raftstore.Open(ctx, raftstore.Options{Dir: dir, NodeID: "one", Logger: raftstore.TestLog("one"), Faults: faults}))(t)
			t.Cleanup(func() { testenv.Check(t, s.Close(context.Background())) })
			c := connect(t, s)
			started := make(chan clientv3.WatchChan)
			go func() { started <- c.Watch(ctx, "/a", clientv3.WithCreatedNotify()) }()
			got, err := c.Get(ctx, "/a", clientv3.WithSerializable())
			if err != nil || got.Header.Revision != last || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "9" {
				t.Errorf("%v, %v: revision %d was acknowledged before the restart", got, err, last)
			}
			watch := <-started
			if resp := <-watch; !resp.Created || resp.Header.Revision != last {
				t.Errorf("the watch began after revision %d, not %d: %+v", resp.Header.Revision, last, resp)
			}
			faults.DelayFlushes(0)
			next := raftstore.MustPut(ctx, t, c, "/a", "next")
			if events := raftstore.Collect(ctx, t, watch, 1); events[0].Kv.ModRevision != next {
				t.Errorf("the watch from now on began with revision %d, %d is new", events[0].Kv.ModRevision, next)
			}
		})
	}
}

// Watches that want progress notifications get them while nothing is written,
// whatever revision they began at.
func TestProgressOfAnIdleStore(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{ProgressInterval: 50 * time.Millisecond}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		first := raftstore.MustPut(ctx, t, c, "/x", "1")
		last := first
		for range 5 {
			last = raftstore.MustPut(ctx, t, c, "/x", "2")
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for what, watch := range map[string]clientv3.WatchChan{
			"from now on": c.Watch(ctx, "/quiet", clientv3.WithProgressNotify()),
			"resumed":     c.Watch(ctx, "/quiet", clientv3.WithProgressNotify(), clientv3.WithRev(first)),
			"with events": c.Watch(ctx, "/x", clientv3.WithProgressNotify(), clientv3.WithRev(last)),
		} {
			for reports := 0; reports < 3; {
				resp, open := <-watch
				switch {
				case !open:
					t.Fatalf("%s: the watch ended", what)
				case resp.IsProgressNotify() && resp.Header.Revision != last:
					t.Fatalf("%s: progress to revision %d, the store is at %d", what, resp.Header.Revision, last)
				case resp.IsProgressNotify():
					reports++
				}
			}
		}
	})
}

// An order of results is only what is asked for as one.
func TestRangeStreamOrder(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		raftstore.MustPut(ctx, t, c, "/a", "2")
		raftstore.MustPut(ctx, t, c, "/b", "1")
		get := func(target clientv3.SortTarget, order clientv3.SortOrder) (*clientv3.GetResponse, error) {
			stream, err := c.GetStream(ctx, "/", clientv3.WithPrefix(), clientv3.WithSort(target, order))
			if err != nil {
				return nil, err
			}
			return clientv3.GetStreamToGetResponse(stream)
		}
		for _, target := range []clientv3.SortTarget{clientv3.SortByKey, clientv3.SortByVersion, clientv3.SortByModRevision} {
			testenv.Equal(t, len(testenv.Must(get(target, clientv3.SortNone))(t).Kvs), 2, "no order by %v:", target)
		}
		if _, err := get(clientv3.SortByVersion, clientv3.SortAscend); status.Code(err) != codes.Unimplemented {
			t.Errorf("an order: %v", err)
		}
	})
}

// Leases are listed by the time that they have left.
func TestLeasesByExpiry(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		for _, ttl := range []int64{500, 100, 300, 200, 400} {
			testenv.Must(c.Grant(ctx, ttl))(t)
		}
		all, err := c.Leases(ctx)
		testenv.Require(t, err == nil && len(all.Leases) >= 5, "%v, %v", all, err)
		var left []int64
		for _, l := range all.Leases {
			info := testenv.Must(c.TimeToLive(ctx, l.ID))(t)
			left = append(left, info.GrantedTTL)
		}
		testenv.True(t, slices.IsSorted(left), "leases of %v seconds, granted one after the other, come in this order", left)
	})
}

// No client sets the alarm for lack of space: it follows what there is.
func TestNoSpaceAlarmFollowsTheSpace(t *testing.T) {
	ctx := raftstore.TestContext(t)
	s := raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir(), QuotaBytes: 1 << 20})
	c := raftstore.Dial(t, s)
	id := testenv.Must(c.MemberList(ctx))(t).Members[0].ID
	for face, c := range map[string]*clientv3.Client{"native": s.Client().Client, "grpc": c} {
		testenv.Equal(t, len(testenv.Must(c.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: id, Alarm: pb.AlarmType_NOSPACE}))(t).Alarms), 0, "%s: disarm what does not stand:", face)
	}
	alarm := pb.NewMaintenanceClient(c.ActiveConnection())
	_, err := alarm.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})
	testenv.True(t, status.Code(err) == codes.Unimplemented, "set an alarm: %v", err)
	for i := 0; ; i++ {
		if _, err := c.Put(ctx, fmt.Sprint(i), raftstore.Noise(300<<10)); errors.Is(err, rpctypes.ErrNoSpace) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for face, c := range map[string]*clientv3.Client{"native": s.Client().Client, "grpc": c} {
		list, err := c.AlarmList(ctx)
		testenv.False(t, err != nil || len(list.Alarms) != 1 || list.Alarms[0].Alarm != pb.AlarmType_NOSPACE, "%s: %v, %v", face, list, err)
		testenv.ErrorIs(t, testenv.Err(c.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: id, Alarm: pb.AlarmType_NOSPACE})), rpctypes.ErrNoSpace, "%s: disarm what stands", face)
	}
}

// The gRPC health protocol says whether clients may come.
func TestHealthProtocolAnswers(t *testing.T) {
	ctx := raftstore.TestContext(t)
	c := healthpb.NewHealthClient(raftstore.Dial(t, raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir()})).ActiveConnection())
	testenv.Equal(t, testenv.Must(c.Check(ctx, &healthpb.HealthCheckRequest{}))(t).Status, healthpb.HealthCheckResponse_SERVING, "")
}

func TestLeadershipIsReported(t *testing.T) {
	ctx := raftstore.TestContext(t)
	s := raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir()})
	lead := s.Leadership()
	if got := <-lead; !got.Leader || got.Term == 0 {
		t.Fatalf("%+v", got)
	}
	testenv.NoError(t, s.Close(ctx))
	for got := range lead {
		testenv.Require(t, !got.Leader, "%+v after closing", got)
	}
	testenv.Fails(t, testenv.Err(s.Client().Put(ctx, "/a", "1")), "a closed store took a write")
}

// TestCancelledWrites cancels writes at every moment. Each one either happened
// or not, and an error other than the context's means that it did not.
func TestCancelledWrites(t *testing.T) { raftstore.Everywhere(t, testCancelledWrites) }

func testCancelledWrites(ctx context.Context, t *testing.T, s *raftstore.Store) {
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			c := s.Client()
			for i := range 50 {
				short, stop := context.WithTimeout(ctx, time.Duration(i*20)*time.Microsecond)
				_, err := c.Put(short, fmt.Sprintf("/c/%d/%d", w, i), "x")
				stop()
				testenv.False(t, err != nil && !errors.Is(err, context.DeadlineExceeded), "%v", err)
				if err != nil {
					continue
				}
				if got, err := c.KV.Get(ctx, fmt.Sprintf("/c/%d/%d", w, i)); err != nil || len(got.Kvs) != 1 {
					t.Errorf("an acknowledged write is not there: %v", err)
				}
			}
		})
	}
	all.Wait()
}

// TestSlowWatcher stalls one watcher while another is served, then lets it
// catch up: nothing is missing. A stalled one whose history is compacted is
// sent an error.
func TestSlowWatcher(t *testing.T) { raftstore.Everywhere(t, testSlowWatcher) }

func testSlowWatcher(ctx context.Context, t *testing.T, s *raftstore.Store) {
	c := s.Client().Client
	first := raftstore.MustPut(ctx, t, c, "/s/0", "0")
	slow := c.Watch(ctx, "/s/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV())
	lost := c.Watch(ctx, "/s/", clientv3.WithPrefix(), clientv3.WithRev(first))
	fast := c.Watch(ctx, "/s/", clientv3.WithPrefix(), clientv3.WithRev(first))
	<-lost         // it is being served
	const n = 4096 // several times what a watcher's queue takes
	var writers sync.WaitGroup
	for w := range 32 {
		writers.Go(func() {
			for i := range n / 32 {
				raftstore.MustPut(ctx, t, c, fmt.Sprintf("/s/%d", w), fmt.Sprint(i))
			}
		})
	}
	raftstore.Collect(ctx, t, fast, n+1)
	writers.Wait()
	for i, e := range raftstore.Collect(ctx, t, slow, n+1) {
		if want := first + int64(i); e.Kv.ModRevision != want {
			t.Fatalf("event %d has revision %d, want %d", i, e.Kv.ModRevision, want)
		}
		testenv.Require(t, !e.IsModify() || e.PrevKv != nil, "event %d has no previous value", i)
	}
	testenv.Must(c.Compact(ctx, first+n))(t)
	var last int64
	for resp := range lost {
		for _, e := range resp.Events {
			if last != 0 && e.Kv.ModRevision != last+1 {
				t.Fatalf("revision %d followed %d", e.Kv.ModRevision, last)
			}
			last = e.Kv.ModRevision
		}
		if err := resp.Err(); err != nil {
			testenv.Require(t, errors.Is(err, rpctypes.ErrCompacted) && resp.CompactRevision == first+n, "%+v", resp)
			return
		}
	}
	t.Fatal("a watcher that lost events was not sent an error")
}
