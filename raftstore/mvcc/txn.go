// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"cmp"
	"iter"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// applyTxn runs a transaction as etcd does. First every comparison, nested ones included, is evaluated on the state
// before the transaction. Then all operations of the chosen branches are checked. Then they run in order, and each sees
// the effects of the ones before it. If a check fails, nothing has changed.
func (s *State) applyTxn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	path := s.choose(r, nil)
	if _, err := s.checkTxn(r, path); err != nil {
		return nil, err
	}
	w := s.beginWrite()
	resp, _, err := w.txn(r, path)
	if err != nil {
		return nil, err
	}
	resp.Header.Revision = w.finishWrite()
	return resp, nil
}

// ReadOnly says whether a transaction cannot write, whichever of its branches are chosen.
func ReadOnly(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if t := op.GetRequestTxn(); op.GetRequestRange() == nil && (t == nil || !ReadOnly(t)) {
				return false
			}
		}
	}
	return true
}

// Added returns how many bytes a request may add to Stats.TotalBytes, by all of its branches together. Deletion marks
// do not count. Requests that add nothing may still be run when there is no room.
func Added(req Request) int64 {
	added := int64(0)
	for put := range puts(req) {
		added += sizeOf(put.Key, put.Value)
	}
	if _, grants := req.(*pb.LeaseGrantRequest); grants {
		added += sizeOf(nil, nil)
	}
	return added
}

// Lengthened returns by how many bytes a request's values are longer than those that it replaces, by all of its
// branches together. A key that does not exist counts as an empty one.
func (v *View) Lengthened(req Request) int64 {
	longer := int64(0)
	for put := range puts(req) {
		present := 0
		v.Walk(put.Key, nil, v.rev, func(at *Version) bool {
			present = len(at.kv.Value)
			return false
		})
		longer += int64(max(0, len(put.Value)-present))
	}
	return longer
}

// puts iterates over the puts of a request, those of nested transactions included.
func puts(req Request) iter.Seq[*pb.PutRequest] {
	return func(yield func(*pb.PutRequest) bool) { eachPut(req, yield) }
}

func eachPut(req Request, yield func(*pb.PutRequest) bool) bool {
	switch r := req.(type) {
	case *pb.PutRequest:
		return yield(r)
	case *pb.TxnRequest:
		for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
			for _, op := range ops {
				if put := op.GetRequestPut(); put != nil && !yield(put) {
					return false
				}
				if txn := op.GetRequestTxn(); txn != nil && !eachPut(txn, yield) {
					return false
				}
			}
		}
	}
	return true
}

// Txn answers a transaction that is ReadOnly.
func (v *View) Txn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	frozen := State{keyspace: v.keyspace, rev: v.rev, shared: v.shared}
	return frozen.applyTxn(r)
}

// choose evaluates the comparisons of r and of the transactions nested in the chosen branch, depth first. The result
// says for each of them whether its comparisons succeeded.
func (s *State) choose(r *pb.TxnRequest, path []bool) []bool {
	ok := true
	for _, c := range r.Compare {
		if !s.compare(c) {
			ok = false
			break
		}
	}
	path = append(path, ok)
	for _, op := range branch(r, ok) {
		if t := op.GetRequestTxn(); t != nil {
			path = s.choose(t, path)
		}
	}
	return path
}

func branch(r *pb.TxnRequest, ok bool) []*pb.RequestOp {
	if ok {
		return r.Success
	}
	return r.Failure
}

// checkTxn checks the operations of the chosen branches. It returns the rest of path, which belongs to later
// transactions.
func (s *State) checkTxn(r *pb.TxnRequest, path []bool) ([]bool, error) {
	ops, path := branch(r, path[0]), path[1:]
	var err error
	for _, op := range ops {
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			err = s.checkPut(o.RequestPut)
		case *pb.RequestOp_RequestRange:
			_, err = checkRevision(o.RequestRange.Revision, s.rev, s.compacted.Load())
		case *pb.RequestOp_RequestTxn:
			path, err = s.checkTxn(o.RequestTxn, path)
		}
		if err != nil {
			return nil, err
		}
	}
	return path, nil
}

func (w *write) txn(r *pb.TxnRequest, path []bool) (*pb.TxnResponse, []bool, error) {
	ok := path[0]
	ops, path := branch(r, ok), path[1:]
	resp := &pb.TxnResponse{Succeeded: ok, Header: &pb.ResponseHeader{}, Responses: make([]*pb.ResponseOp, len(ops))}
	for i, op := range ops {
		out := &pb.ResponseOp{}
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: w.put(o.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: w.deleteRange(o.RequestDeleteRange)}
		case *pb.RequestOp_RequestRange:
			rr, err := rangeIn(&w.s.keyspace, w.current(), &w.s.compacted, o.RequestRange)
			if err != nil {
				return nil, nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: rr}
		case *pb.RequestOp_RequestTxn:
			inner, rest, err := w.txn(o.RequestTxn, path)
			if err != nil {
				return nil, nil, err
			}
			path = rest
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: inner}
		}
		resp.Responses[i] = out
	}
	resp.Header.Revision = w.current()
	return resp, path, nil
}

// compare evaluates one comparison. A key that does not exist has version, revisions and lease 0. It has no value: a
// comparison of its value fails whatever the operator is. Over a range, every key must pass. An empty range counts as
// one missing key.
func (s *State) compare(c *pb.Compare) bool {
	if len(c.RangeEnd) == 0 {
		return compareOne(c, s.get(c.Key))
	}
	found, ok := false, true
	ascend(s.tree, c.Key, c.RangeEnd, func(v *Version) bool {
		if v.Deleted() {
			return true
		}
		found = true
		ok = compareOne(c, v)
		return ok
	})
	if !found {
		return compareOne(c, nil)
	}
	return ok
}

func compareOne(c *pb.Compare, v *Version) bool {
	if v == nil {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		v = &Version{}
	}
	var order int
	switch c.Target {
	case pb.Compare_VALUE:
		order = bytes.Compare(v.kv.Value, c.GetValue())
	case pb.Compare_CREATE:
		order = cmp.Compare(v.kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(v.kv.ModRevision, c.GetModRevision())
	case pb.Compare_VERSION:
		order = cmp.Compare(v.kv.Version, c.GetVersion())
	case pb.Compare_LEASE:
		order = cmp.Compare(v.kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return false
}
