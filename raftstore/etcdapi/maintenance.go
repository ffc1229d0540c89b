// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Status serves etcd's Maintenance.Status.
func (a *API) Status() *pb.StatusResponse {
	stats, st := a.o.Store.View().Stats(), a.o.Store.EtcdStatus()
	header := a.Header()
	return &pb.StatusResponse{
		Header: header, Version: Version, StorageVersion: Version,
		DbSize: stats.TotalBytes, DbSizeInUse: stats.LiveBytes, DbSizeQuota: st.Quota,
		RaftIndex: st.Committed, RaftAppliedIndex: st.Applied, RaftTerm: header.RaftTerm,
		Leader: st.Leader, IsLearner: st.Learner, Errors: st.Refusing,
	}
}

// HashKV serves etcd's Maintenance.HashKV. The hash is equal on all servers, but not equal to etcd's.
func (a *API) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	view, err := a.o.Store.Linearizable(ctx)
	if err != nil {
		return nil, err
	}
	rev, err := view.CheckRevision(r.Revision)
	if err != nil {
		return nil, err
	}
	hash := view.Hash(rev)
	if compacted := view.Compacted(); rev < compacted {
		return nil, rpctypes.ErrGRPCCompacted // compacted while it was read
	}
	return &pb.HashKVResponse{Header: a.Header(), Hash: hash, CompactRevision: view.Compacted(), HashRevision: rev}, nil
}

// Alarm serves etcd's Maintenance.Alarm. There is one alarm: no space, on the disk or within the quota. It is active
// while there is no space. A client cannot set it, and an attempt to clear it fails while it is active.
func (a *API) Alarm(r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	stands := a.o.Store.EtcdStatus().NoSpace && (r.Alarm == pb.AlarmType_NONE || r.Alarm == pb.AlarmType_NOSPACE)
	resp := &pb.AlarmResponse{Header: a.Header()}
	switch r.Action {
	case pb.AlarmRequest_GET:
		if stands {
			resp.Alarms = []*pb.AlarmMember{{MemberID: a.o.MemberID, Alarm: pb.AlarmType_NOSPACE}}
		}
	case pb.AlarmRequest_DEACTIVATE:
		if stands {
			return nil, rpctypes.ErrGRPCNoSpace
		}
	default:
		return nil, status.Error(codes.Unimplemented, "raftstore: clients cannot set alarms: the store sets and clears NOSPACE itself, by the "+
			"disk and the quota")
	}
	return resp, nil
}

// Backup writes the whole state to w and returns its revision.
func (a *API) Backup(ctx context.Context, w io.Writer) (revision int64, err error) {
	return a.o.Store.Backup(ctx, w)
}

// MoveLeader serves etcd's Maintenance.MoveLeader. Only the leader serves it.
func (a *API) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := a.o.Store.MoveLeader(ctx, r.TargetID); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{Header: a.Header()}, nil
}
