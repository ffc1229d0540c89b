// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/powercut/report"
)

const (
	keysEach   = 24
	leasesEach = 3
	leaseTTL   = 1 << 20 // seconds: longer than any test
	// historyKept is how many revisions a compaction leaves. A write that is
	// under way while so many others finish would be hard to account for.
	historyKept  = 1000
	compactEvery = 500 // revisions
)

// client writes to its own keys, one write after the other, and reports each.
type client struct {
	store  *raftstore.Store
	out    *reporter
	boot   int
	number int
	random *rand.Rand

	keys     map[string]*mvccpb.KeyValue // what is there, by short name
	leases   []int64
	n        int
	revision int64 // newest that it was answered
	compact  int64 // newest that it compacted to
}

// Lease ids say whose they are.
func (c *client) newLease() int64   { return int64(c.boot)<<32 | int64(c.number)<<24 | int64(c.n) }
func leaseOwner(id int64) (who int) { return int(id >> 24 & 0xff) }

// errWrong says that the store broke its word.
var errWrong = errors.New("not what this client, the only one that writes to its keys, was answered before")

// run writes until the machine is gone, or until the outcome of a write is
// unknown, as happens when a leader is lost. The next boot will tell.
func (c *client) run(ctx context.Context) error {
	last := ""
	for {
		c.n++
		w := c.choose()
		w.Boot, w.Client, w.N = c.boot, c.number, c.n
		if last != "" {
			c.out.lines(last, w.Sent())
		} else {
			c.out.lines(w.Sent())
		}
		revision, err := c.send(ctx, w)
		switch code := status.Code(err); {
		case err == nil:
		case code == codes.Unavailable, code == codes.DeadlineExceeded:
			c.out.lines(fmt.Sprintf("? %d %d %v", c.number, c.n, err))
			return nil
		default:
			return fmt.Errorf("write %s (%s): %w", w.Name(), w.Sent(), err)
		}
		c.revision = revision
		last = fmt.Sprintf("a %d %d %d", c.number, c.n, revision)
	}
}

func (c *client) key() string { return fmt.Sprintf("%d/%d", c.number, c.random.IntN(keysEach)) }

func (c *client) lease() int64 {
	if len(c.leases) > 0 && c.random.IntN(5) == 0 {
		return c.leases[c.random.IntN(len(c.leases))]
	}
	return 0
}

// choose picks the next write. Whatever it picks changes something.
func (c *client) choose() *report.Write {
	if c.number == 1 && c.revision-historyKept > c.compact+compactEvery {
		return &report.Write{Compact: c.revision - historyKept}
	}
	key := c.key()
	switch kind := c.random.IntN(100); {
	case kind < 10 && c.keys[key] != nil:
		return &report.Write{Deletes: []string{key}}
	case kind < 14:
		var all []string
		for name := range maps.Keys(c.keys) {
			if name >= key {
				all = append(all, name)
			}
		}
		if slices.Sort(all); len(all) > 1 {
			return &report.Write{Deletes: all}
		}
	case kind < 17 && len(c.leases) < leasesEach:
		c.leases = append(c.leases, c.newLease())
		return &report.Write{Grant: c.leases[len(c.leases)-1]}
	case kind < 19 && len(c.leases) > 0:
		return c.revoke()
	case kind < 50:
		return c.transaction()
	}
	return &report.Write{Puts: []report.Put{{Key: key, Lease: c.lease()}}}
}

func (c *client) revoke() *report.Write {
	i := c.random.IntN(len(c.leases))
	w := &report.Write{Revoke: c.leases[i]}
	c.leases = slices.Delete(c.leases, i, i+1)
	for key, kv := range c.keys {
		if kv.Lease == w.Revoke {
			w.Deletes = append(w.Deletes, key)
		}
	}
	slices.Sort(w.Deletes)
	return w
}

// transaction puts and deletes up to four different keys at once.
func (c *client) transaction() *report.Write {
	w := &report.Write{}
	names := map[string]bool{}
	for range 1 + c.random.IntN(4) {
		names[c.key()] = true
	}
	for i, key := range slices.Sorted(maps.Keys(names)) {
		if i > 0 && c.keys[key] != nil && c.random.IntN(3) == 0 {
			w.Deletes = append(w.Deletes, key)
		} else {
			w.Puts = append(w.Puts, report.Put{Key: key, Lease: c.lease()})
		}
	}
	return w
}

// send sends a write and notes what it changed. It returns the revision.
func (c *client) send(ctx context.Context, w *report.Write) (int64, error) {
	revision, err := c.request(ctx, w)
	if err != nil {
		return 0, err
	}
	for _, p := range w.Puts {
		c.keys[p.Key] = &mvccpb.KeyValue{ModRevision: revision, Lease: p.Lease}
	}
	for _, key := range w.Deletes {
		delete(c.keys, key)
	}
	if w.Compact != 0 {
		c.compact = w.Compact
	}
	return revision, nil
}

func (c *client) request(ctx context.Context, w *report.Write) (int64, error) {
	switch {
	case w.Grant != 0:
		resp, err := c.store.API().LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: w.Grant, TTL: leaseTTL})
		return resp.GetHeader().GetRevision(), err
	case w.Revoke != 0:
		resp, err := c.store.API().LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: w.Revoke})
		return resp.GetHeader().GetRevision(), err
	case w.Compact != 0:
		resp, err := c.store.API().Compact(ctx, &pb.CompactionRequest{Revision: w.Compact})
		return resp.GetHeader().GetRevision(), err
	case len(w.Puts) == 1 && len(w.Deletes) == 0:
		resp, err := c.store.API().Put(ctx, put(w, w.Puts[0]))
		return resp.GetHeader().GetRevision(), err
	case len(w.Puts) == 0:
		resp, err := c.store.API().DeleteRange(ctx, c.deletion(w))
		if err == nil && resp.Deleted != int64(len(w.Deletes)) {
			err = fmt.Errorf("%w: %d keys were deleted", errWrong, resp.Deleted)
		}
		return resp.GetHeader().GetRevision(), err
	}
	resp, err := c.store.API().Txn(ctx, c.txn(w))
	if err == nil && !resp.Succeeded {
		err = fmt.Errorf("%w: the revisions of the keys", errWrong)
	}
	return resp.GetHeader().GetRevision(), err
}

func put(w *report.Write, p report.Put) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(report.Prefix + p.Key), Value: w.Value(p.Key), Lease: p.Lease}
}

// deletion covers one key, or everything from one on.
func (c *client) deletion(w *report.Write) *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{Key: []byte(report.Prefix + w.Deletes[0])}
	if len(w.Deletes) > 1 {
		r.RangeEnd = fmt.Appendf(nil, "%s%d0", report.Prefix, c.number) // 0 comes after /
	}
	return r
}

// txn does it all at once if every key is as this client left it.
func (c *client) txn(w *report.Write) *pb.TxnRequest {
	t := &pb.TxnRequest{}
	compare := func(key string) {
		var revision int64
		if kv := c.keys[key]; kv != nil {
			revision = kv.ModRevision
		}
		t.Compare = append(t.Compare, &pb.Compare{
			Key: []byte(report.Prefix + key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
		})
	}
	for _, p := range w.Puts {
		compare(p.Key)
		t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put(w, p)}})
	}
	for _, key := range w.Deletes {
		compare(key)
		t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(report.Prefix + key)},
		}})
	}
	return t
}
