// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"bytes"
	"errors"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// The checks here refuse what etcd's server refuses, before it reaches the log.

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
	}
	return nil
}

func (a *API) checkTxn(r *pb.TxnRequest) error {
	if proto.Size(r) > a.o.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	if err := a.checkTxnOps(r); err != nil {
		return err
	}
	if _, err := touches(r.Success); err != nil {
		return err
	}
	_, err := touches(r.Failure)
	return err
}

func (a *API) checkTxnOps(r *pb.TxnRequest) error {
	if len(r.Compare) > a.o.MaxTxnOps || len(r.Success) > a.o.MaxTxnOps || len(r.Failure) > a.o.MaxTxnOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if err := a.checkOp(op); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *API) checkOp(op *pb.RequestOp) error {
	switch o := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(o.RequestRange)
	case *pb.RequestOp_RequestPut:
		return a.checkPut(o.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		if len(o.RequestDeleteRange.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		return nil
	case *pb.RequestOp_RequestTxn:
		return a.checkTxnOps(o.RequestTxn)
	}
	return rpctypes.ErrGRPCKeyNotFound // etcd's answer to an operation that is none
}

// touched is what one list of operations writes.
type touched struct {
	puts    map[string]bool
	deletes []*pb.DeleteRangeRequest
}

// touches refuses a list of operations that may write a key twice. The two
// branches of a nested transaction exclude each other, so they may write the
// same keys.
func touches(ops []*pb.RequestOp) (*touched, error) {
	t := &touched{puts: make(map[string]bool)}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			t.deletes = append(t.deletes, d)
		}
	}
	for _, op := range ops {
		txn := op.GetRequestTxn()
		if txn == nil {
			continue
		}
		yes, err := touches(txn.Success)
		if err != nil {
			return nil, err
		}
		no, err := touches(txn.Failure)
		if err != nil {
			return nil, err
		}
		if t.overlaps(yes) || t.overlaps(no) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		t.add(yes)
		t.add(no)
	}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		if t.puts[string(p.Key)] || t.deletesKey(string(p.Key)) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		t.puts[string(p.Key)] = true
	}
	return t, nil
}

func (t *touched) add(o *touched) {
	for k := range o.puts {
		t.puts[k] = true
	}
	t.deletes = append(t.deletes, o.deletes...)
}

func (t *touched) overlaps(o *touched) bool {
	for k := range o.puts {
		if t.puts[k] || t.deletesKey(k) {
			return true
		}
	}
	for k := range t.puts {
		if o.deletesKey(k) {
			return true
		}
	}
	return false
}

func (t *touched) deletesKey(key string) bool {
	return slices.ContainsFunc(t.deletes, func(d *pb.DeleteRangeRequest) bool {
		return mvcc.InRange([]byte(key), d.Key, d.RangeEnd)
	})
}

// CheckRangeStream refuses what etcd's server does not stream.
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

// checkWatch refuses what etcd's server refuses to watch.
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
