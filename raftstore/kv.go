// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// waitLeader waits until this server leads and may serve.
func (s *Store) waitLeader(ctx context.Context) error {
	lead, changed := s.lead.get()
	if lead.Leader {
		return nil
	}
	timeout := s.opts.Clock.NewTimer(s.opts.RequestTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return contextError(ctx)
		case <-s.ctx.Done():
			return ErrClosed
		case <-timeout.C():
			return rpctypes.ErrGRPCTimeout
		case <-changed:
		}
		if lead, changed = s.lead.get(); lead.Leader {
			return nil
		}
	}
}

// Range serves etcd's KV.Range. Keys and values in the answer are the store's
// own memory: read only.
func (s *Store) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	view := s.fsm.view()
	if !r.Serializable {
		var err error
		if view, err = s.linearizable(ctx); err != nil {
			return nil, err
		}
	}
	s.opts.Counters.Ranges.Add(1)
	resp, err := view.Range(r)
	if err != nil {
		return nil, err
	}
	s.complete(resp.Header)
	return resp, nil
}

// Put serves etcd's KV.Put.
func (s *Store) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := s.checkPut(r); err != nil {
		return nil, err
	}
	return answer[*pb.PutResponse](s, ctx, r)
}

// DeleteRange serves etcd's KV.DeleteRange.
func (s *Store) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	return answer[*pb.DeleteRangeResponse](s, ctx, r)
}

// Txn serves etcd's KV.Txn. One that cannot write is answered like a range.
func (s *Store) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := s.checkTxn(r); err != nil {
		return nil, err
	}
	if !mvcc.ReadOnly(r) {
		return answer[*pb.TxnResponse](s, ctx, r)
	}
	view, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := view.Txn(r)
	if err != nil {
		return nil, err
	}
	s.complete(resp.Header)
	return resp, nil
}

// Compact serves etcd's KV.Compact. It is always physical: what it drops is
// unreachable when it returns.
func (s *Store) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return answer[*pb.CompactionResponse](s, ctx, r)
}

type headed interface{ GetHeader() *pb.ResponseHeader }

// answer runs a command and completes its response's header.
func answer[T headed](s *Store, ctx context.Context, req mvcc.Request) (T, error) {
	out, err := s.write(ctx, req)
	if err != nil {
		var none T
		return none, err
	}
	resp := out.(T)
	s.complete(resp.GetHeader())
	return resp, nil
}

// complete adds to a header what the state machine does not know.
func (s *Store) complete(h *pb.ResponseHeader) {
	h.ClusterId, h.MemberId, h.RaftTerm = s.clusterID, s.memberID, s.raft.CurrentTerm()
}

func (s *Store) header() *pb.ResponseHeader { return s.headerAt(s.fsm.view().Revision()) }

func (s *Store) headerAt(revision int64) *pb.ResponseHeader {
	h := &pb.ResponseHeader{Revision: revision}
	s.complete(h)
	return h
}
