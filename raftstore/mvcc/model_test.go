// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// model is the contract written down as simply as possible: every revision is
// a whole copy of all keys. It shares no code with the state machine.
type model struct {
	states    []map[string]*mvccpb.KeyValue // by revision; nothing at 0
	events    []*mvccpb.Event               // all there ever were, in order
	compacted int64
	leases    map[int64]int64
	applied   uint64
	sessions  map[uint64]*modelSession
}

func newModel() *model {
	return &model{
		states: []map[string]*mvccpb.KeyValue{nil, {}}, leases: map[int64]int64{}, sessions: map[uint64]*modelSession{},
	}
}

func (m *model) rev() int64                       { return int64(len(m.states)) - 1 }
func (m *model) now() map[string]*mvccpb.KeyValue { return m.states[m.rev()] }

func within(key, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, from)
	case bytes.Equal(end, []byte{0}):
		return bytes.Compare(key, from) >= 0
	}
	return bytes.Compare(key, from) >= 0 && bytes.Compare(key, end) < 0
}

// in lists the pairs of a range in order.
func in(state map[string]*mvccpb.KeyValue, from, end []byte) []*mvccpb.KeyValue {
	var found []*mvccpb.KeyValue
	for k, kv := range state {
		if within([]byte(k), from, end) {
			found = append(found, kv)
		}
	}
	slices.SortFunc(found, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return found
}

// change is one command under way: a copy that becomes the next revision if
// anything was written to it.
type change struct {
	m     *model
	state map[string]*mvccpb.KeyValue
	rev   int64
	dirty bool
}

func (m *model) change() *change {
	return &change{m: m, state: maps.Clone(m.now()), rev: m.rev() + 1}
}

func (c *change) commit() {
	if c.dirty {
		c.m.states = append(c.m.states, c.state)
	}
}

func (c *change) put(r *pb.PutRequest) *pb.PutResponse {
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, CreateRevision: c.rev, ModRevision: c.rev, Version: 1}
	resp := &pb.PutResponse{}
	if old := c.state[string(r.Key)]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		if r.IgnoreValue {
			kv.Value = old.Value
		}
		if r.IgnoreLease {
			kv.Lease = old.Lease
		}
		if r.PrevKv {
			resp.PrevKv = old
		}
	}
	c.dirty = true
	c.state[string(r.Key)] = kv
	c.event(mvccpb.Event_PUT, kv)
	return resp
}

func (c *change) event(t mvccpb.Event_EventType, kv *mvccpb.KeyValue) {
	c.m.events = append(c.m.events, &mvccpb.Event{Type: t, Kv: kv, PrevKv: c.m.now()[string(kv.Key)]})
}

func (c *change) remove(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	for _, kv := range in(c.state, r.Key, r.RangeEnd) {
		resp.Deleted++
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, kv)
		}
		c.dirty = true
		delete(c.state, string(kv.Key))
		c.event(mvccpb.Event_DELETE, &mvccpb.KeyValue{Key: kv.Key, ModRevision: c.rev})
	}
	return resp
}

func (m *model) readable(rev int64) error {
	switch {
	case rev > m.rev():
		return rpctypes.ErrGRPCFutureRev
	case rev > 0 && rev < m.compacted:
		return rpctypes.ErrGRPCCompacted
	}
	return nil
}

// read answers a range; newest is the state that revision 0 means.
func (m *model) read(r *pb.RangeRequest, newest map[string]*mvccpb.KeyValue) (*pb.RangeResponse, error) {
	if err := m.readable(r.Revision); err != nil {
		return nil, err
	}
	state := newest
	if r.Revision > 0 {
		state = m.states[r.Revision]
	}
	all := in(state, r.Key, r.RangeEnd)
	resp := &pb.RangeResponse{Count: int64(len(all))}
	if r.CountOnly {
		return resp, nil
	}
	for _, kv := range all {
		if r.MinModRevision > 0 && kv.ModRevision < r.MinModRevision || r.MaxModRevision > 0 && kv.ModRevision > r.MaxModRevision ||
			r.MinCreateRevision > 0 && kv.CreateRevision < r.MinCreateRevision || r.MaxCreateRevision > 0 && kv.CreateRevision > r.MaxCreateRevision {
			continue
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	by := map[pb.RangeRequest_SortTarget]func(a, b *mvccpb.KeyValue) int{
		pb.RangeRequest_KEY:     func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) },
		pb.RangeRequest_VALUE:   func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Value, b.Value) },
		pb.RangeRequest_MOD:     func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.ModRevision, b.ModRevision) },
		pb.RangeRequest_CREATE:  func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) },
		pb.RangeRequest_VERSION: func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.Version, b.Version) },
	}[r.SortTarget]
	sign := 1
	if r.SortOrder == pb.RangeRequest_DESCEND {
		sign = -1
	}
	slices.SortStableFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return sign * by(a, b) })
	if r.Limit > 0 && int64(len(resp.Kvs)) > r.Limit {
		resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
	}
	if r.KeysOnly {
		for i, kv := range resp.Kvs {
			resp.Kvs[i] = proto.Clone(kv).(*mvccpb.KeyValue)
			resp.Kvs[i].Value = nil
		}
	}
	return resp, nil
}

func (m *model) putError(r *pb.PutRequest) error {
	if (r.IgnoreValue || r.IgnoreLease) && m.now()[string(r.Key)] == nil {
		return rpctypes.ErrGRPCKeyNotFound
	}
	if _, ok := m.leases[r.Lease]; r.Lease != 0 && !ok {
		return rpctypes.ErrGRPCLeaseNotFound
	}
	return nil
}

func (m *model) holds(c *pb.Compare) bool {
	found := in(m.now(), c.Key, c.RangeEnd)
	if len(found) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		found = []*mvccpb.KeyValue{{}}
	}
	for _, kv := range found {
		order := map[pb.Compare_CompareTarget]int{
			pb.Compare_VERSION: cmp.Compare(kv.Version, c.GetVersion()),
			pb.Compare_CREATE:  cmp.Compare(kv.CreateRevision, c.GetCreateRevision()),
			pb.Compare_MOD:     cmp.Compare(kv.ModRevision, c.GetModRevision()),
			pb.Compare_LEASE:   cmp.Compare(kv.Lease, c.GetLease()),
			pb.Compare_VALUE:   bytes.Compare(kv.Value, c.GetValue()),
		}[c.Target]
		if ok := map[pb.Compare_CompareResult]bool{
			pb.Compare_EQUAL: order == 0, pb.Compare_NOT_EQUAL: order != 0,
			pb.Compare_GREATER: order > 0, pb.Compare_LESS: order < 0,
		}[c.Result]; !ok {
			return false
		}
	}
	return true
}

// taken returns the branch of a transaction that is run.
func (m *model) taken(r *pb.TxnRequest) (bool, []*pb.RequestOp) {
	for _, c := range r.Compare {
		if !m.holds(c) {
			return false, r.Failure
		}
	}
	return true, r.Success
}

func (m *model) txnError(r *pb.TxnRequest) error {
	_, ops := m.taken(r)
	for _, op := range ops {
		var err error
		switch {
		case op.GetRequestPut() != nil:
			err = m.putError(op.GetRequestPut())
		case op.GetRequestRange() != nil:
			err = m.readable(op.GetRequestRange().Revision)
		case op.GetRequestTxn() != nil:
			err = m.txnError(op.GetRequestTxn())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *change) txn(r *pb.TxnRequest) *pb.TxnResponse {
	ok, ops := c.m.taken(r)
	resp := &pb.TxnResponse{Succeeded: ok}
	for _, op := range ops {
		out := &pb.ResponseOp{}
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: c.put(o.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: c.remove(o.RequestDeleteRange)}
		case *pb.RequestOp_RequestRange:
			rr, _ := c.m.read(o.RequestRange, c.state)
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: rr}
		case *pb.RequestOp_RequestTxn:
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: c.txn(o.RequestTxn)}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp
}

// apply runs a request and returns the response without headers. at is the id
// of a session that it opens.
func (m *model) apply(req Request, at uint64) (proto.Message, error) {
	c := m.change()
	defer c.commit()
	switch r := req.(type) {
	case *pb.PutRequest:
		if err := m.putError(r); err != nil {
			return nil, err
		}
		return c.put(r), nil
	case *pb.DeleteRangeRequest:
		return c.remove(r), nil
	case *pb.TxnRequest:
		if err := m.txnError(r); err != nil {
			return nil, err
		}
		return c.txn(r), nil
	case *pb.CompactionRequest:
		if r.Revision <= m.compacted {
			return nil, rpctypes.ErrGRPCCompacted
		}
		if r.Revision > m.rev() {
			return nil, rpctypes.ErrGRPCFutureRev
		}
		m.compacted = r.Revision
		return &pb.CompactionResponse{}, nil
	case *pb.LeaseGrantRequest:
		if _, ok := m.leases[r.ID]; ok || r.ID == 0 {
			return nil, rpctypes.ErrGRPCLeaseExist
		}
		m.leases[r.ID] = r.TTL
		return &pb.LeaseGrantResponse{ID: r.ID, TTL: r.TTL}, nil
	case *pb.LeaseRevokeRequest:
		if _, ok := m.leases[r.ID]; !ok {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
		delete(m.leases, r.ID)
		for _, kv := range in(m.now(), []byte{0}, []byte{0}) {
			if kv.Lease == r.ID {
				c.remove(&pb.DeleteRangeRequest{Key: kv.Key})
			}
		}
		return &pb.LeaseRevokeResponse{}, nil
	case *wrapperspb.StringValue:
		return m.open(r.Value, at)
	}
	panic("unknown command")
}
