// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"cmp"
	"slices"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// rangeIn answers a range request on keys whose newest revision is current.
//
// As in etcd, Count is the number of keys in the range, whatever the limit and the revision filters are. The filters,
// and any order but that of the keys, apply before the limit.
func rangeIn(keys *keyspace, current int64, compacted *atomic.Int64, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	rev, err := checkRevision(r.Revision, current, compacted.Load())
	if err != nil {
		return nil, err
	}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: current}}
	switch {
	case r.CountOnly && len(r.RangeEnd) > 0:
		resp.Count = keys.count(r.Key, r.RangeEnd, rev)
	case r.Limit > 0 && !r.CountOnly && !needsSort(r) && !filtersByRevision(r):
		readFirst(keys, rev, r, resp)
	default:
		readAll(keys, rev, r, resp)
	}
	if rev < current && rev < compacted.Load() {
		return nil, rpctypes.ErrGRPCCompacted // pruned while it was read
	}
	if r.KeysOnly {
		resp.Kvs = withoutValues(resp.Kvs)
	}
	return resp, nil
}

// readFirst answers with the first keys of a range. It counts the others without visiting them.
func readFirst(keys *keyspace, rev int64, r *pb.RangeRequest, resp *pb.RangeResponse) {
	walk(keys.tree, r.Key, r.RangeEnd, rev, func(v *Version) bool {
		if resp.More = int64(len(resp.Kvs)) == r.Limit; !resp.More {
			resp.Kvs = append(resp.Kvs, v.KV())
		}
		return !resp.More
	})
	if resp.Count = int64(len(resp.Kvs)); resp.More {
		resp.Count = keys.count(r.Key, r.RangeEnd, rev)
	}
}

// readAll answers with the keys of a range that match the filters. It visits every key.
func readAll(keys *keyspace, rev int64, r *pb.RangeRequest, resp *pb.RangeResponse) {
	early := !needsSort(r) // the limit can apply while walking
	walk(keys.tree, r.Key, r.RangeEnd, rev, func(v *Version) bool {
		resp.Count++
		switch {
		case r.CountOnly:
		case early && r.Limit > 0 && int64(len(resp.Kvs)) >= r.Limit:
			if matchesRevisions(&v.kv, r) {
				resp.More = true
			}
		case matchesRevisions(&v.kv, r):
			resp.Kvs = append(resp.Kvs, v.KV())
		}
		return true
	})
	if !early {
		sortKVs(resp.Kvs, r)
		if r.Limit > 0 && int64(len(resp.Kvs)) > r.Limit {
			resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
		}
	}
}

// filtersByRevision says whether a request selects keys by their revisions.
func filtersByRevision(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

func matchesRevisions(kv *mvccpb.KeyValue, r *pb.RangeRequest) bool {
	return (r.MinModRevision == 0 || kv.ModRevision >= r.MinModRevision) &&
		(r.MaxModRevision == 0 || kv.ModRevision <= r.MaxModRevision) &&
		(r.MinCreateRevision == 0 || kv.CreateRevision >= r.MinCreateRevision) &&
		(r.MaxCreateRevision == 0 || kv.CreateRevision <= r.MaxCreateRevision)
}

func needsSort(r *pb.RangeRequest) bool {
	if r.SortTarget == pb.RangeRequest_KEY {
		return r.SortOrder == pb.RangeRequest_DESCEND
	}
	return true // any other target without an order means ascending
}

func sortKVs(kvs []*mvccpb.KeyValue, r *pb.RangeRequest) {
	var compare func(a, b *mvccpb.KeyValue) int
	switch r.SortTarget {
	case pb.RangeRequest_VERSION:
		compare = func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) }
	case pb.RangeRequest_CREATE:
		compare = func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) }
	case pb.RangeRequest_MOD:
		compare = func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) }
	case pb.RangeRequest_VALUE:
		compare = func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) }
	default:
		compare = func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) }
	}
	if r.SortOrder == pb.RangeRequest_DESCEND {
		slices.SortStableFunc(kvs, func(a, b *mvccpb.KeyValue) int { return compare(b, a) })
		return
	}
	slices.SortStableFunc(kvs, compare)
}

func withoutValues(kvs []*mvccpb.KeyValue) []*mvccpb.KeyValue {
	slab := make([]mvccpb.KeyValue, len(kvs))
	for i, kv := range kvs {
		k := &slab[i]
		k.Key, k.CreateRevision, k.ModRevision, k.Version, k.Lease =
			kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease
		kvs[i] = k
	}
	return kvs
}
