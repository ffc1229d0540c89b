// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// view returns the view for a read. For a serializable read no other server is asked, but the view has at least what
// was acknowledged before this server started.
func (a *API) view(ctx context.Context, serializable bool) (*mvcc.View, error) {
	if !serializable {
		return a.o.Store.Linearizable(ctx)
	}
	select {
	case <-a.o.Ready:
		return a.o.Store.View(), nil
	default:
	}
	ctx, cancel := WithTimeout(ctx, a.o.RequestTimeout)
	defer cancel()
	if err := a.awaitReady(ctx); err != nil {
		return nil, err
	}
	return a.o.Store.View(), nil
}

// Range serves etcd's KV.Range. Keys and values in the answer are the store's own memory: read only.
func (a *API) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	view, err := a.view(ctx, r.Serializable)
	if err != nil {
		return nil, err
	}
	a.o.Counters.Ranges.Add(1)
	resp, err := view.Range(r)
	if err != nil {
		return nil, err
	}
	a.complete(resp.Header)
	return resp, nil
}

// Put serves etcd's KV.Put.
func (a *API) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := a.checkPut(r); err != nil {
		return nil, err
	}
	return runCommand[*pb.PutResponse](ctx, a, r)
}

// DeleteRange serves etcd's KV.DeleteRange.
func (a *API) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := a.checkDelete(r); err != nil {
		return nil, err
	}
	return runCommand[*pb.DeleteRangeResponse](ctx, a, r)
}

// Txn serves etcd's KV.Txn. A transaction that cannot write is answered like a range. If it has reads and all are
// serializable, no other server is asked.
func (a *API) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := a.checkTxn(r); err != nil {
		return nil, err
	}
	if !mvcc.ReadOnly(r) {
		return runCommand[*pb.TxnResponse](ctx, a, r)
	}
	view, err := a.view(ctx, countSerializable(r) > 0)
	if err != nil {
		return nil, err
	}
	resp, err := view.Txn(r)
	if err != nil {
		return nil, err
	}
	a.complete(resp.Header)
	return resp, nil
}

// Compact serves etcd's KV.Compact. It is always physical: what it drops is unreachable when it returns.
func (a *API) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return runCommand[*pb.CompactionResponse](ctx, a, r)
}

// countSerializable returns the number of reads in a read-only transaction, or -1 if any of them is not serializable.
func countSerializable(r *pb.TxnRequest) int {
	reads := 0
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			n := -1
			if t := op.GetRequestTxn(); t != nil {
				n = countSerializable(t)
			} else if op.GetRequestRange().GetSerializable() {
				n = 1
			}
			if n < 0 {
				return -1
			}
			reads += n
		}
	}
	return reads
}

type headerResponse interface{ GetHeader() *pb.ResponseHeader }

// runCommand runs a command and completes its response's header.
func runCommand[T headerResponse](ctx context.Context, a *API, req mvcc.Request) (T, error) {
	out, err := a.o.Store.Write(ctx, req)
	if err != nil {
		var none T
		return none, err
	}
	resp := out.(T)
	a.complete(resp.GetHeader())
	return resp, nil
}
