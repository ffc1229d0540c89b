// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Status serves etcd's Maintenance.Status.
func (a *API) Status() *pb.StatusResponse {
	stats, st := a.o.Store.View().Stats(), a.o.Store.EtcdStatus()
	header := a.Header()
	return &pb.StatusResponse{
		Header: header, Version: Version, StorageVersion: Version,
		DbSize: stats.TotalBytes, DbSizeInUse: stats.LiveBytes, DbSizeQuota: st.Quota,
		RaftIndex: st.LastIndex, RaftAppliedIndex: st.Applied, RaftTerm: header.RaftTerm,
		Leader: st.Leader, IsLearner: st.Learner, Errors: st.Refusing,
	}
}

// HashKV serves etcd's Maintenance.HashKV. The hash is our own, equal on all
// servers and not equal to etcd's.
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
		return nil, rpctypes.ErrGRPCCompacted // under our feet
	}
	return &pb.HashKVResponse{Header: a.Header(), Hash: hash, CompactRevision: view.Compacted(), HashRevision: rev}, nil
}

// Alarm serves etcd's Maintenance.Alarm: it lists the one alarm that there is: no space, on the disk or within the
// quota. Nobody sets or clears it: it follows what is there.
func (a *API) Alarm(r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_GET {
		return nil, errors.New("raftstore: the alarm for lack of space follows the disk and the quota and cannot be set or cleared: free some space")
	}
	resp := &pb.AlarmResponse{Header: a.Header()}
	if a.o.Store.EtcdStatus().NoSpace && (r.Alarm == pb.AlarmType_NONE || r.Alarm == pb.AlarmType_NOSPACE) {
		resp.Alarms = []*pb.AlarmMember{{MemberID: a.o.MemberID, Alarm: pb.AlarmType_NOSPACE}}
	}
	return resp, nil
}

// Backup writes the whole state to w and returns its revision.
func (a *API) Backup(ctx context.Context, w io.Writer) (revision int64, err error) {
	return a.o.Store.Backup(ctx, w)
}

// MoveLeader serves etcd's Maintenance.MoveLeader, which is for the leader.
func (a *API) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := a.o.Store.MoveLeader(ctx, r.TargetID); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{Header: a.Header()}, nil
}
