// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// show writes events as text, one a word.
func show(events []*clientv3.Event) string {
	var out []string
	for _, e := range events {
		s := fmt.Sprintf("%s:%s=%s@%d", e.Type, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision)
		if e.PrevKv != nil {
			s += fmt.Sprintf("(was %s@%d)", e.PrevKv.Value, e.PrevKv.ModRevision)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestKVServesRangesAndTransactions(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		raftstore.MustPut(ctx, t, c, "/a/1", "one")
		raftstore.MustPut(ctx, t, c, "/a/2", "two")
		rev := raftstore.MustPut(ctx, t, c, "/b", "b")
		raftstore.MustPut(ctx, t, c, "/a/1", "uno")

		got, err := c.Get(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithLimit(1))
		if err != nil || len(got.Kvs) != 1 || !got.More || got.Count != 2 || string(got.Kvs[0].Value) != "uno" || got.Kvs[0].Version != 2 {
			t.Fatalf("%v, %v", got, err)
		}
		got, err = c.Get(ctx, "/a/", clientv3.WithPrefix(), clientv3.WithRev(rev), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
		testenv.Require(t, err == nil && len(got.Kvs) == 2 && string(got.Kvs[1].Value) == "one", "%v, %v", got, err)
		got, err = c.Get(ctx, "", clientv3.WithFromKey(), clientv3.WithKeysOnly())
		testenv.Require(t, err == nil && len(got.Kvs) == 3 && got.Kvs[0].Value == nil, "%v, %v", got, err)
		stream := testenv.Must(c.GetStream(ctx, "/a/", clientv3.WithPrefix()))(t)
		streamed, err := clientv3.GetStreamToGetResponse(stream)
		testenv.Require(t, err == nil && len(streamed.Kvs) == 2 && streamed.Count == 2, "%v, %v", streamed, err)
		txn, err := c.Txn(ctx).If(
			clientv3.Compare(clientv3.Version("/a/1"), "=", 2), clientv3.Compare(clientv3.Value("/b"), "=", "b"),
		).Then(
			clientv3.OpPut("/c", "c"), clientv3.OpGet("/c"), clientv3.OpDelete("/a/", clientv3.WithPrefix(), clientv3.WithPrevKV()),
			clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("/d", "d")}, nil),
		).Commit()
		if err != nil || !txn.Succeeded || len(txn.Responses) != 4 ||
			len(txn.Responses[1].GetResponseRange().Kvs) != 1 || txn.Responses[2].GetResponseDeleteRange().Deleted != 2 {
			t.Fatalf("%v, %v", txn, err)
		}
		deleted, err := c.Delete(ctx, "/nothing")
		testenv.Require(t, err == nil && deleted.Deleted == 0 && deleted.Header.Revision == txn.Header.Revision, "%v, %v", deleted, err)
	})
}

func TestRequestErrors(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{MaxRequestBytes: 64 << 10}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		rev := raftstore.MustPut(ctx, t, c, "/a", "1")
		raftstore.MustPut(ctx, t, c, "/a", "2")
		testenv.Must(c.Compact(ctx, rev+1))(t)
		for name, test := range map[string]struct {
			do   func() error
			want error
		}{
			"empty key":       {func() error { _, err := c.Put(ctx, "", "x"); return err }, rpctypes.ErrEmptyKey},
			"too large":       {func() error { _, err := c.Put(ctx, "/x", strings.Repeat("x", 65<<10)); return err }, rpctypes.ErrRequestTooLarge},
			"compacted":       {func() error { _, err := c.Get(ctx, "/a", clientv3.WithRev(rev)); return err }, rpctypes.ErrCompacted},
			"future":          {func() error { _, err := c.Get(ctx, "/a", clientv3.WithRev(rev+99)); return err }, rpctypes.ErrFutureRev},
			"compact twice":   {func() error { _, err := c.Compact(ctx, rev+1); return err }, rpctypes.ErrCompacted},
			"compact future":  {func() error { _, err := c.Compact(ctx, rev+99); return err }, rpctypes.ErrFutureRev},
			"no lease":        {func() error { _, err := c.Put(ctx, "/x", "x", clientv3.WithLease(99)); return err }, rpctypes.ErrLeaseNotFound},
			"revoke no lease": {func() error { _, err := c.Revoke(ctx, 99); return err }, rpctypes.ErrLeaseNotFound},
			"ignore value":    {func() error { _, err := c.Put(ctx, "/x", "", clientv3.WithIgnoreValue()); return err }, rpctypes.ErrKeyNotFound},
			"lease TTL":       {func() error { _, err := c.Grant(ctx, 1<<40); return err }, rpctypes.ErrLeaseTTLTooLarge},
			"a key twice": {func() error {
				_, err := c.Txn(ctx).Then(clientv3.OpPut("/x", "1"), clientv3.OpPut("/x", "2")).Commit()
				return err
			}, rpctypes.ErrDuplicateKey},
			"put and delete": {func() error {
				_, err := c.Txn(ctx).Then(clientv3.OpDelete("/", clientv3.WithPrefix()), clientv3.OpPut("/x", "2")).Commit()
				return err
			}, rpctypes.ErrDuplicateKey},
			"too many": {func() error {
				_, err := c.Txn(ctx).Then(manyPuts(129)...).Commit()
				return err
			}, rpctypes.ErrTooManyOps},
			"watch compacted": {func() error { r := <-c.Watch(ctx, "/a", clientv3.WithRev(rev)); return r.Err() }, rpctypes.ErrCompacted},
			"context is ended": {func() error {
				ended, stop := context.WithCancel(ctx)
				stop()
				_, err := c.Put(ended, "/x", "x")
				return err
			}, context.Canceled},
		} {
			if err := test.do(); !errors.Is(err, test.want) {
				t.Errorf("%s: got %v, want %v", name, err, test.want)
			}
		}
		resp := <-c.Watch(ctx, "/a", clientv3.WithRev(rev))
		testenv.False(t, resp.CompactRevision != rev+1 || !resp.Canceled, "watch of a compacted revision: %+v", resp)
		testenv.Equal(t, len(testenv.Must(c.Get(ctx, "/x"))(t).Kvs), 0, "a refused write left a trace:")
	})
}

func manyPuts(n int) []clientv3.Op {
	var ops []clientv3.Op
	for i := range n {
		ops = append(ops, clientv3.OpPut(fmt.Sprint("/m/", i), ""))
	}
	return ops
}

func TestWatchThroughBothFaces(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		first := raftstore.MustPut(ctx, t, c, "/w/a", "1")
		raftstore.MustPut(ctx, t, c, "/other", "x")
		all := c.Watch(ctx, "/w/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV())
		one := c.Watch(ctx, "/w/a", clientv3.WithRev(first), clientv3.WithFilterPut())
		raftstore.MustPut(ctx, t, c, "/w/a", "2")
		testenv.Must(c.Txn(ctx).Then(clientv3.OpDelete("/w/a"), clientv3.OpPut("/w/b", "3")).Commit())(t)
		want := fmt.Sprintf("PUT:/w/a=1@%d PUT:/w/a=2@%d(was 1@%d) DELETE:/w/a=@%d(was 2@%d) PUT:/w/b=3@%d",
			first, first+2, first, first+3, first+2, first+3)
		testenv.Equal(t, show(raftstore.Collect(ctx, t, all, 4)), want, "")
		if got, want := show(raftstore.Collect(ctx, t, one, 1)), fmt.Sprintf("DELETE:/w/a=@%d", first+3); got != want {
			t.Errorf("filtered: got %s, want %s", got, want)
		}

		// A quiet watch learns how far the store is when it asks.
		quiet, stop := context.WithCancel(ctx)
		watch := c.Watch(quiet, "/quiet", clientv3.WithCreatedNotify())
		if resp := <-watch; !resp.Created {
			t.Fatalf("%+v", resp)
		}
		rev := raftstore.MustPut(ctx, t, c, "/w/c", "4")
		testenv.NoError(t, c.RequestProgress(quiet))
		if resp := <-watch; !resp.IsProgressNotify() || resp.Header.Revision < rev {
			t.Fatalf("%+v", resp)
		}
		stop()
		for range watch { // until it is closed
		}
		if resp := <-c.Watch(ctx, "b", clientv3.WithRange("a")); !resp.Canceled {
			t.Errorf("an empty range: %+v", resp)
		}
	})
}

func TestWatchFragments(t *testing.T) {
	s := raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir(), MaxRequestBytes: 64 << 10})
	c, ctx := raftstore.Dial(t, s), raftstore.TestContext(t)
	first := raftstore.MustPut(ctx, t, c, "/f/first", "")
	const n = 20
	for i := range n {
		raftstore.MustPut(ctx, t, c, fmt.Sprint("/f/", i), strings.Repeat("x", 30<<10))
	}
	watch := c.Watch(ctx, "/f/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithFragment())
	if got := raftstore.Collect(ctx, t, watch, n+1); len(got) != n+1 || got[n].Kv.ModRevision != first+n {
		t.Fatalf("%d events", len(got))
	}
}

func TestLeasesThroughBothFaces(t *testing.T) {
	raftstore.Faces(t, raftstore.Options{}, func(ctx context.Context, t *testing.T, c *clientv3.Client) {
		lease := testenv.Must(c.Grant(ctx, 100))(t)
		raftstore.MustPut(ctx, t, c, "/l/1", "x", clientv3.WithLease(lease.ID))
		raftstore.MustPut(ctx, t, c, "/l/2", "x", clientv3.WithLease(lease.ID))
		raftstore.MustPut(ctx, t, c, "/l/1", "x") // no longer attached
		info, err := c.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil || info.GrantedTTL != 100 || info.TTL < 90 || len(info.Keys) != 1 || string(info.Keys[0]) != "/l/2" {
			t.Fatalf("%+v, %v", info, err)
		}
		testenv.Must(c.KeepAliveOnce(ctx, lease.ID))(t)
		alive, stop := context.WithCancel(ctx)
		responses := testenv.Must(c.KeepAlive(alive, lease.ID))(t)
		if resp := <-responses; resp == nil || resp.TTL != 100 {
			t.Fatalf("%+v", resp)
		}
		stop()
		testenv.Check(t, c.Lease.Close()) // or it tries again for as long as the process lives
		all, err := c.Leases(ctx)
		testenv.Require(t, err == nil && len(all.Leases) == 1 && all.Leases[0].ID == lease.ID, "%+v, %v", all, err)
		testenv.Must(c.Revoke(ctx, lease.ID))(t)
		got, err := c.Get(ctx, "/l/", clientv3.WithPrefix())
		testenv.Require(t, err == nil && len(got.Kvs) == 1 && string(got.Kvs[0].Key) == "/l/1", "%v, %v", got, err)
		if info, err := c.TimeToLive(ctx, lease.ID); err != nil || info.TTL != -1 {
			t.Fatalf("%+v, %v", info, err)
		}
	})
}

func TestMaintenanceOverGRPC(t *testing.T) {
	ctx := raftstore.TestContext(t)
	s := raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir()})
	c := raftstore.Dial(t, s)
	rev := raftstore.MustPut(ctx, t, c, "/a", "1")
	endpoint := c.Endpoints()[0]
	info, err := c.Status(ctx, endpoint)
	if err != nil || info.Version != "3.7.0" || info.Header.Revision != rev || info.Leader != info.Header.MemberId || info.DbSize == 0 {
		t.Errorf("%+v, %v", info, err)
	}
	before := testenv.Must(c.HashKV(ctx, endpoint, 0))(t)
	raftstore.MustPut(ctx, t, c, "/a", "2")
	then, err1 := c.HashKV(ctx, endpoint, rev)
	now, err2 := c.HashKV(ctx, endpoint, 0)
	if err := errors.Join(err1, err2); err != nil || then.Hash != before.Hash || now.Hash == before.Hash {
		t.Errorf("hashes %v, %v, %v, %v", before, then, now, err)
	}
	members, err := c.MemberList(ctx)
	testenv.False(t, err != nil || len(members.Members) != 1 || members.Members[0].Name != "one", "%v, %v", members, err)
	testenv.Equal(t, len(testenv.Must(c.AlarmList(ctx))(t).Alarms), 0, "")
	if _, err := c.UserList(ctx); status.Code(err) != codes.Unimplemented {
		t.Errorf("authentication: %v", err)
	}
}

// TestDamagedBackupIsRefusedAndAWholeOneRestored takes a backup as etcdctl does, and starts a new store from it.
func TestDamagedBackupIsRefusedAndAWholeOneRestored(t *testing.T) {
	ctx := raftstore.TestContext(t)
	s := raftstore.OpenStore(t, raftstore.Options{Dir: t.TempDir()})
	c := raftstore.Dial(t, s)
	lease := testenv.Must(c.Grant(ctx, 100))(t)
	raftstore.MustPut(ctx, t, c, "/a", "1", clientv3.WithLease(lease.ID))
	rev := raftstore.MustPut(ctx, t, c, "/b", strings.Repeat("2", 200<<10))
	r := testenv.Must(c.Snapshot(ctx))(t)
	blob, err := io.ReadAll(r)
	testenv.Require(t, err == nil && len(blob)%512 == 32, "%d bytes, %v", len(blob), err)
	dir := filepath.Join(t.TempDir(), "restored")
	damaged := bytes.Clone(blob)
	damaged[len(blob)/2] ^= 1
	if err := raftstore.Restore(raftstore.Options{Dir: dir}, bytes.NewReader(damaged), 0); err == nil {
		t.Fatal("a damaged backup was restored")
	}
	testenv.NoError(t, raftstore.Restore(raftstore.Options{Dir: dir, NodeID: "two"}, bytes.NewReader(blob), 0))
	if err := raftstore.Restore(raftstore.Options{Dir: dir, NodeID: "two"}, bytes.NewReader(blob), 0); err == nil {
		t.Fatal("restored over an existing store")
	}
	nc := raftstore.OpenStore(t, raftstore.Options{Dir: dir, NodeID: "two"}).Client().Client
	got, err := nc.Get(ctx, "/", clientv3.WithPrefix())
	testenv.Require(t, err == nil && len(got.Kvs) == 2 && got.Kvs[1].ModRevision == rev && got.Header.Revision > rev+1000,
		"%v, %v", got.Header, err)
	if info, err := nc.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()); err != nil || len(info.Keys) != 1 {
		t.Fatalf("%v, %v", info, err)
	}
	if resp := <-nc.Watch(ctx, "/a", clientv3.WithRev(rev)); !errors.Is(resp.Err(), rpctypes.ErrCompacted) {
		t.Fatalf("a watch from before the restore: %v", resp.Err())
	}
}

// A survivor that lacks the last writes is recovered. A client that saw those, and goes on watching where it was, is
// gets from either API that this was compacted, and so lists again.
func TestWatchFromBeforeARecovery(t *testing.T) {
	ctx, lost, survivor := raftstore.TestContext(t), t.TempDir(), t.TempDir()
	s := raftstore.OpenStore(t, raftstore.Options{Dir: lost})
	raftstore.MustPut(ctx, t, s.Client().Client, "/a", "both have it")
	testenv.NoError(t, errors.Join(s.Close(ctx), os.CopyFS(survivor, os.DirFS(lost))))
	s = raftstore.OpenStore(t, raftstore.Options{Dir: lost})
	seen := raftstore.MustPut(ctx, t, s.Client().Client, "/a", "the survivor lacks it")
	testenv.NoError(t, s.Close(ctx))
	testenv.NoError(t, raftstore.Recover(raftstore.Options{Dir: survivor, NodeID: "one", Logger: slog.New(slog.DiscardHandler)}))
	s = raftstore.OpenStore(t, raftstore.Options{Dir: survivor})
	raftstore.MustPut(ctx, t, s.Client().Client, "/a", "the first write after the recovery")
	for face, c := range map[string]*clientv3.Client{"native": s.Client().Client, "grpc": raftstore.Dial(t, s)} {
		ctx, cancel := context.WithTimeout(ctx, time.Minute) // or a watch without an answer would wait for ever
		defer cancel()
		r, ok := <-c.Watch(ctx, "/a", clientv3.WithRev(seen+1))
		if !ok || !errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision <= seen {
			t.Errorf("%s: a watch after revision %d got %+v (%v)", face, seen, r, r.Err())
		}
		testenv.ErrorIs(t, testenv.Err(c.Get(ctx, "/a", clientv3.WithRev(seen))), rpctypes.ErrCompacted, "%s: a read at revision %d", face, seen)
	}
}
