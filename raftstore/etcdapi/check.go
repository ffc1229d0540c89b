// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"bytes"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coracle-k8s/coracle/internal/level"
)

// The checks here refuse what etcd's server refuses, before it is in the log.

func checkRange(r *pb.RangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func (a *API) checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	case len(r.Key)+len(r.Value) > a.o.MaxRequestBytes:
		return rpctypes.ErrGRPCRequestTooLarge
	case string(r.Key) == level.Key:
		return errLevel
	}
	return nil
}

// errLevel refuses a write that only the store's leader may make (raftstore.Cluster.RaiseLevel).
var errLevel = status.Error(codes.InvalidArgument,
	"raftstore: the cluster's level is written only by coracle upgrade raise, and never removed")

func (a *API) checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	key, end, open := string(r.Key), string(r.RangeEnd), len(r.RangeEnd) == 1 && r.RangeEnd[0] == 0
	if key == level.Key || key < level.Key && (open || level.Key < end) {
		if a.o.Store.View().Level() > level.First {
			return errLevel
		}
	}
	return nil
}

func (a *API) checkTxn(r *pb.TxnRequest) error {
	if proto.Size(r) > a.o.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	if err := a.checkTxnOps(r, a.o.MaxTxnOps); err != nil {
		return err
	}
	return checkWrites(r)
}

// checkTxnOps refuses a transaction with more operations than left. As in etcd (server/etcdserver/api/v3rpc/key.go,
// checkTxnRequest), the longest list of a transaction counts, and nested transactions may have what is left.
func (a *API) checkTxnOps(r *pb.TxnRequest, left int) error {
	longest := max(len(r.Compare), len(r.Success), len(r.Failure))
	if longest > left {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if err := a.checkOp(op, left-longest); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *API) checkOp(op *pb.RequestOp, left int) error {
	switch o := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(o.RequestRange)
	case *pb.RequestOp_RequestPut:
		return a.checkPut(o.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return a.checkDelete(o.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return a.checkTxnOps(o.RequestTxn, left)
	}
	return rpctypes.ErrGRPCKeyNotFound // etcd's answer to an operation without a request
}

// CheckRangeStream refuses range requests that etcd's server does not stream.
func CheckRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	byKey := r.SortOrder == pb.RangeRequest_ASCEND && r.SortTarget == pb.RangeRequest_KEY
	if r.SortOrder != pb.RangeRequest_NONE && !byKey {
		return status.Error(codes.Unimplemented, "raftstore: a sorted range cannot be streamed")
	}
	if r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0 {
		return status.Error(codes.Unimplemented, "raftstore: a range with revision filters cannot be streamed")
	}
	return nil
}

var errEmptyWatch = errors.New("mvcc: watcher range is empty")

// checkWatch refuses watches that etcd's server refuses.
func checkWatch(r *pb.WatchCreateRequest) error {
	open := len(r.RangeEnd) == 1 && r.RangeEnd[0] == 0
	switch {
	case r.StartRevision < 0:
		return rpctypes.ErrGRPCCompacted
	case len(r.RangeEnd) > 0 && !open && bytes.Compare(r.Key, r.RangeEnd) >= 0:
		return errEmptyWatch
	}
	return nil
}
