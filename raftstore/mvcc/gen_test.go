// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

// The generators use few keys, values, leases and revisions, so that commands
// meet.
var (
	genKey   = rapid.Map(rapid.SampledFrom([]string{"a", "ab", "abc", "b", "ba", "c"}), func(s string) []byte { return []byte(s) })
	genValue = rapid.Map(rapid.SampledFrom([]string{"", "x", "y", "zz"}), func(s string) []byte { return []byte(s) })
	genLease = rapid.SampledFrom([]int64{0, 0, 0, 1, 2, 3})
)

func genEnd(t *rapid.T) []byte {
	return rapid.SampledFrom([][]byte{nil, nil, {0}, []byte("b"), []byte("ac"), []byte("d"), []byte("a")}).Draw(t, "end")
}

func genRev(t *rapid.T, current int64) int64 {
	if rapid.Bool().Draw(t, "newest") {
		return 0
	}
	return rapid.Int64Range(max(0, current-12), current+1).Draw(t, "rev")
}

func genRange(t *rapid.T, current int64) *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key: genKey.Draw(t, "key"), RangeEnd: genEnd(t), Revision: genRev(t, current),
		Limit:    rapid.SampledFrom([]int64{0, 0, 1, 2}).Draw(t, "limit"),
		KeysOnly: rapid.Bool().Draw(t, "keysOnly"), CountOnly: rapid.IntRange(0, 5).Draw(t, "count") == 0,
	}
	if rapid.Bool().Draw(t, "sorted") {
		r.SortOrder = pb.RangeRequest_SortOrder(rapid.Int32Range(0, 2).Draw(t, "order"))
		r.SortTarget = pb.RangeRequest_SortTarget(rapid.Int32Range(0, 4).Draw(t, "target"))
	}
	if rapid.IntRange(0, 3).Draw(t, "filtered") == 0 {
		for _, limit := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			if rapid.Bool().Draw(t, "limited") {
				*limit = rapid.Int64Range(0, current+1).Draw(t, "filter")
			}
		}
	}
	return r
}

func genPut(t *rapid.T) *pb.PutRequest {
	r := &pb.PutRequest{Key: genKey.Draw(t, "key"), Value: genValue.Draw(t, "value"), Lease: genLease.Draw(t, "lease"), PrevKv: rapid.Bool().Draw(t, "prev")}
	switch rapid.IntRange(0, 6).Draw(t, "ignore") {
	case 0:
		r.IgnoreValue, r.Value = true, nil
	case 1:
		r.IgnoreLease, r.Lease = true, 0
	}
	return r
}

func genDelete(t *rapid.T) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: genKey.Draw(t, "key"), RangeEnd: genEnd(t), PrevKv: rapid.Bool().Draw(t, "prev")}
}

func genCompare(t *rapid.T, current int64) *pb.Compare {
	c := &pb.Compare{Key: genKey.Draw(t, "key"), RangeEnd: genEnd(t), Result: pb.Compare_CompareResult(rapid.Int32Range(0, 3).Draw(t, "result"))}
	n := rapid.Int64Range(0, 3).Draw(t, "n")
	switch c.Target = pb.Compare_CompareTarget(rapid.Int32Range(0, 4).Draw(t, "target")); c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: n}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: genRev(t, current)}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: genRev(t, current)}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: genValue.Draw(t, "value")}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: n}
	}
	return c
}

func genTxn(t *rapid.T, current int64, depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		r.Compare = append(r.Compare, genCompare(t, current))
	}
	for _, ops := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
		for range rapid.IntRange(0, 3).Draw(t, "ops") {
			*ops = append(*ops, genOp(t, current, depth))
		}
	}
	return r
}

// genOp also makes what the store refuses before it gets here: operations of
// one transaction that write the same key.
func genOp(t *rapid.T, current int64, depth int) *pb.RequestOp {
	switch kind := rapid.IntRange(0, 7).Draw(t, "op"); {
	case kind < 3:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: genPut(t)}}
	case kind < 4:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: genDelete(t)}}
	case kind < 5 && depth < 2:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: genTxn(t, current, depth+1)}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: genRange(t, current)}}
}

// genRequest makes any request, for a store at revision current that is
// compacted up to compacted.
func genRequest(t *rapid.T, current, compacted int64) Request {
	switch kind := rapid.IntRange(0, 19).Draw(t, "request"); {
	case kind < 8:
		return genPut(t)
	case kind < 11:
		return genDelete(t)
	case kind < 15:
		return genTxn(t, current, 0)
	case kind < 17:
		return &pb.LeaseGrantRequest{ID: genLease.Draw(t, "id"), TTL: rapid.Int64Range(1, 9).Draw(t, "ttl")}
	case kind < 18:
		return &pb.LeaseRevokeRequest{ID: genLease.Draw(t, "id")}
	case kind < 19:
		return wrapperspb.String(rapid.SampledFrom([]string{"one", "two", "three", ""}).Draw(t, "server"))
	}
	// Mostly a little, so that there is a history.
	to := min(current+1, compacted+rapid.Int64Range(0, 12).Draw(t, "compact"))
	return &pb.CompactionRequest{Revision: to}
}
