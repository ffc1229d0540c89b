// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/diskfaults"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// A server that was restarted has an old state until raft has sent it what is
// committed. Who asks it meanwhile waits, also for a serializable read; and a
// watch from now on begins after what was acknowledged before.
func TestRestartedServerIsNotReadTooEarly(t *testing.T) {
	for face, connect := range map[string]func(testing.TB, *Store) *clientv3.Client{
		"native": func(_ testing.TB, s *Store) *clientv3.Client { return s.Client().Client }, "grpc": dial,
	} {
		t.Run(face, func(t *testing.T) {
			ctx, dir := testContext(t), t.TempDir()
			s := openStore(t, Options{Dir: dir})
			var last int64
			for i := range 10 {
				last = mustPut(ctx, t, s.Client().Client, "/a", fmt.Sprint(i))
			}
			testenv.NoError(t, s.Close(ctx))
			faults := &diskfaults.Faults{}
			faults.DelayFlushes(300 * time.Millisecond) // its vote takes so long
			s = testenv.Must(Open(ctx, Options{Dir: dir, NodeID: "one", Logger: testLog("one"), Faults: faults}))(t)
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
			next := mustPut(ctx, t, c, "/a", "next")
			if events := collect(ctx, t, watch, 1); events[0].Kv.ModRevision != next {
				t.Errorf("the watch from now on began with revision %d, %d is new", events[0].Kv.ModRevision, next)
			}
		})
	}
}

// The same of a follower that is cut off when it comes back.
func TestScenarioRestartedFollowerIsNotReadTooEarly(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		leader := c.leader()
		away := c.others(leader)[0]
		kv := leader.running().Client().KV
		c.put(c.within(time.Second), leader.name, kv, "k", "old")
		away.stop()
		c.put(c.within(time.Second), leader.name, kv, "k", "new")
		c.isolate(away)
		away.start()
		client := away.running().Client()
		short := c.within(2 * time.Second)
		if got, err := client.KV.Get(short, "k", clientv3.WithSerializable()); err == nil {
			t.Errorf("cut off, it served revision %d", got.Header.Revision)
		}
		done := make(chan clientv3.WatchChan)
		go func() { done <- client.Watch(c.ctx, "k") }()
		c.pass(time.Second)
		c.net.HealAll()
		watch := <-done
		if got, err := client.KV.Get(c.within(time.Minute), "k", clientv3.WithSerializable()); err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "new" {
			t.Errorf("%v, %v", got, err)
		}
		c.put(c.within(time.Minute), leader.name, kv, "k", "newest")
		if events := collect(c.within(time.Minute), t, watch, 1); string(events[0].Kv.Value) != "newest" {
			t.Errorf("a watch from now on began with %q", events[0].Kv.Value)
		}
	})
}

// Without a leader, clients that require one are refused at once, and their
// streams end within seconds; what needs none goes on.
func TestWithoutLeader(t *testing.T) {
	// What waited for a leader instead of being refused would wait for longer than this test does.
	ctx, stores := testContext(t), openClusterOf(t, 3, func(o *Options) { o.RequestTimeout = time.Hour })
	clients := map[string]*clientv3.Client{"native": stores[2].Client().Client, "grpc": dial(t, stores[2])}
	mustPut(ctx, t, clients["grpc"], "/a", "1")
	leases, alive := map[string]clientv3.LeaseID{}, map[string]<-chan *clientv3.LeaseKeepAliveResponse{}
	for face, c := range clients {
		grant, err := c.Grant(ctx, 600)
		testenv.NoError(t, err)
		leases[face] = grant.ID
		alive[face], err = c.KeepAlive(clientv3.WithRequireLeader(ctx), grant.ID)
		testenv.NoError(t, err)
		if resp := <-alive[face]; resp == nil {
			t.Fatal("a lease is not kept alive")
		}
	}
	for _, s := range stores[:2] {
		testenv.NoError(t, s.Close(ctx))
	}
	until(ctx, t, "the leader is missed", func() bool { lead, _ := stores[2].leader.get(); return !lead.known() })
	for face, c := range clients {
		t.Run(face, func(t *testing.T) {
			if resp := <-c.Watch(clientv3.WithRequireLeader(ctx), "/a"); !errors.Is(resp.Err(), rpctypes.ErrNoLeader) {
				t.Errorf("a watch that requires a leader: %+v", resp)
			}
			// etcd's client drops the stream's status, and returns io.EOF, where the refusal arrives before it has sent
			// the request.
			err := io.EOF
			for errors.Is(err, io.EOF) && ctx.Err() == nil {
				_, err = c.KeepAliveOnce(clientv3.WithRequireLeader(ctx), leases[face])
			}
			testenv.ErrorIs(t, err, rpctypes.ErrNoLeader, "a keep-alive that requires a leader")
			// The client asks again for some seconds before it gives up.
			testenv.ErrorIs(t, testenv.Err(c.Get(clientv3.WithRequireLeader(ctx), "/a", clientv3.WithSerializable())), rpctypes.ErrNoLeader, "a read that requires a leader")
			txn, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Version("/a"), "=", 1)).
				Then(clientv3.OpGet("/a", clientv3.WithSerializable())).Else(clientv3.OpGet("/b", clientv3.WithSerializable())).Commit()
			if err != nil || !txn.Succeeded || len(txn.Responses[0].GetResponseRange().Kvs) != 1 {
				t.Errorf("a transaction of serializable reads: %v, %v", txn, err)
			}
			short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
			defer stop()
			if txn, err := c.Txn(short).Then(clientv3.OpGet("/a", clientv3.WithSerializable()), clientv3.OpGet("/a")).Commit(); err == nil {
				t.Errorf("a transaction with one read that is not serializable: %v", txn)
			}
			for {
				select {
				case _, open := <-alive[face]:
					if open {
						continue
					}
				case <-ctx.Done():
					t.Error("the keep-alive did not end")
				}
				break
			}
			testenv.Check(t, c.Lease.Close()) // or it tries again for as long as the process lives
		})
	}
}

// A leader may be asked to lead; another server is not the one to ask.
func TestMoveLeader(t *testing.T) {
	ctx := testContext(t)
	standalone := openStore(t, Options{Dir: t.TempDir()})
	testenv.Check(t, testenv.Err(dial(t, standalone).MoveLeader(ctx, standalone.replica.memberID)), "the only server to itself")
	stores := openCluster(t, 3)
	leader := dial(t, stores[0])
	testenv.Check(t, testenv.Err(leader.MoveLeader(ctx, stores[0].replica.memberID)), "the leader to itself")
	testenv.True(t, stores[0].Status().Leadership.Leader, "it leads no longer")
	testenv.ErrorIs(t, testenv.Err(leader.MoveLeader(ctx, 99)), rpctypes.ErrBadLeaderTransferee, "to no member")
	testenv.ErrorIs(t, testenv.Err(dial(t, stores[1]).MoveLeader(ctx, stores[0].replica.memberID)), rpctypes.ErrNotLeader, "a follower")
}

// Watches that want progress notifications get them while nothing is written,
// whatever revision they began at.
func TestProgressOfAnIdleStore(t *testing.T) {
	faces(t, Options{ProgressInterval: 50 * time.Millisecond}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		first := mustPut(ctx, t, c, "/x", "1")
		last := first
		for range 5 {
			last = mustPut(ctx, t, c, "/x", "2")
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
	faces(t, Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		mustPut(ctx, t, c, "/a", "2")
		mustPut(ctx, t, c, "/b", "1")
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
	faces(t, Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		for _, ttl := range []int64{500, 100, 300, 200, 400} {
			testenv.Must(c.Grant(ctx, ttl))(t)
		}
		all, err := c.Leases(ctx)
		if err != nil || len(all.Leases) < 5 {
			t.Fatalf("%v, %v", all, err)
		}
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
	ctx := testContext(t)
	s := openStore(t, Options{Dir: t.TempDir(), QuotaBytes: 1 << 20})
	for face, c := range map[string]*clientv3.Client{"native": s.Client().Client, "grpc": dial(t, s)} {
		testenv.Equal(t, len(testenv.Must(c.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: s.replica.memberID, Alarm: pb.AlarmType_NOSPACE}))(t).Alarms), 0, "%s: disarm what does not stand:", face)
	}
	c := dial(t, s)
	alarm := pb.NewMaintenanceClient(c.ActiveConnection())
	_, err := alarm.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE})
	testenv.True(t, status.Code(err) == codes.Unimplemented, "set an alarm: %v", err)
	for i := 0; ; i++ {
		if _, err := c.Put(ctx, fmt.Sprint(i), noise(300<<10)); errors.Is(err, rpctypes.ErrNoSpace) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for face, c := range map[string]*clientv3.Client{"native": s.Client().Client, "grpc": c} {
		list, err := c.AlarmList(ctx)
		testenv.False(t, err != nil || len(list.Alarms) != 1 || list.Alarms[0].Alarm != pb.AlarmType_NOSPACE, "%s: %v, %v", face, list, err)
		testenv.ErrorIs(t, testenv.Err(c.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: s.replica.memberID, Alarm: pb.AlarmType_NOSPACE})), rpctypes.ErrNoSpace, "%s: disarm what stands", face)
	}
}

// The gRPC health protocol says whether clients may come.
func TestHealthProtocolAnswers(t *testing.T) {
	ctx := testContext(t)
	c := healthpb.NewHealthClient(dial(t, openStore(t, Options{Dir: t.TempDir()})).ActiveConnection())
	testenv.Equal(t, testenv.Must(c.Check(ctx, &healthpb.HealthCheckRequest{}))(t).Status, healthpb.HealthCheckResponse_SERVING, "")
}
