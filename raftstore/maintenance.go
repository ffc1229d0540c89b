// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// etcdVersion is the version of etcd whose contract this is. Clients decide by
// it what they may ask for.
const etcdVersion = "3.7.0"

// Backup writes the whole state, as of one revision that it returns, to w:
// keys, history and leases. Writes go on meanwhile. Restore reads it.
func (s *Store) Backup(ctx context.Context, w io.Writer) (revision int64, err error) {
	view, err := s.linearizable(ctx)
	if err != nil {
		return 0, err
	}
	snapshot := view.Snapshot()
	defer snapshot.Release()
	if _, err := snapshot.WriteTo(w); err != nil {
		return 0, fmt.Errorf("raftstore: back up: %w", err)
	}
	return snapshot.Revision(), nil
}

func (s *Store) statusResponse() *pb.StatusResponse {
	view := s.fsm.view()
	st := view.Stats()
	resp := &pb.StatusResponse{
		Header: s.header(), Version: etcdVersion, StorageVersion: etcdVersion,
		DbSize: st.TotalBytes, DbSizeInUse: st.LiveBytes,
		RaftIndex: s.raft.LastIndex(), RaftAppliedIndex: s.raft.AppliedIndex(), RaftTerm: s.raft.CurrentTerm(),
	}
	if lead, _ := s.leader.get(); lead.known() {
		resp.Leader = memberID(string(lead.ID))
	}
	for _, m := range s.Members() {
		resp.IsLearner = resp.IsLearner || m.Self && !m.Voter
	}
	if err := s.admit(); err != nil {
		resp.Errors = append(resp.Errors, err.Error())
	}
	if s.overQuota() {
		resp.Errors = append(resp.Errors, "raftstore: the quota is used up: writes that add anything are refused")
	}
	resp.DbSizeQuota = s.opts.QuotaBytes
	return resp
}

func (s *Store) hashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	view, err := s.linearizable(ctx)
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
	return &pb.HashKVResponse{Header: s.header(), Hash: hash, CompactRevision: view.Compacted(), HashRevision: rev}, nil
}

// alarms lists the one alarm that there is: no space, on the disk or within the
// quota. Nobody sets or clears it: it follows what is there.
func (s *Store) alarms(r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_GET {
		return nil, errors.New("raftstore: the alarm for lack of space follows the disk and the quota and cannot be set or cleared: free some space")
	}
	resp := &pb.AlarmResponse{Header: s.header()}
	if (s.overQuota() || errors.Is(s.admit(), rpctypes.ErrGRPCNoSpace)) && (r.Alarm == pb.AlarmType_NONE || r.Alarm == pb.AlarmType_NOSPACE) {
		resp.Alarms = []*pb.AlarmMember{{MemberID: s.memberID, Alarm: pb.AlarmType_NOSPACE}}
	}
	return resp, nil
}

// maintenanceServer is the store's Maintenance service.
type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	s *Store
}

func (m *maintenanceServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return m.s.statusResponse(), nil
}

func (m *maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	resp, err := m.s.hashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: resp.Header, Hash: resp.Hash}, nil
}

func (m *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	return m.s.hashKV(ctx, r)
}

func (m *maintenanceServer) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return m.s.alarms(r)
}

// Defragment has nothing to do: the state is in memory, and the log's file
// reuses its space.
func (m *maintenanceServer) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return &pb.DefragmentResponse{Header: m.s.header()}, nil
}

// Snapshot streams a backup in our format. As etcd does, it fills the length
// up to a multiple of 512 and adds a SHA-256, by which clients know that the
// file is whole.
func (m *maintenanceServer) Snapshot(_ *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	w := &blobWriter{stream: stream, header: m.s.header()}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	if _, err := m.s.Backup(stream.Context(), out); err != nil {
		return err
	}
	if pad := -w.written & 511; pad > 0 {
		if _, err := out.Write(make([]byte, pad)); err != nil {
			return err
		}
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

type blobWriter struct {
	stream  grpc.ServerStreamingServer[pb.SnapshotResponse]
	header  *pb.ResponseHeader
	written int
}

func (w *blobWriter) Write(p []byte) (int, error) {
	w.written += len(p)
	// A copy: gRPC may still be sending it when the caller reuses p.
	blob := append([]byte(nil), p...)
	return len(p), w.stream.Send(&pb.SnapshotResponse{Header: w.header, Blob: blob, Version: etcdVersion})
}

// nativeMaintenance is etcd's maintenance client without a connection.
type nativeMaintenance struct{ s *Store }

var _ clientv3.Maintenance = (*nativeMaintenance)(nil)

var errNoEndpoint = errors.New("raftstore: not possible through the in-process client; connect to the store's socket")

func (m *nativeMaintenance) Status(context.Context, string) (*clientv3.StatusResponse, error) {
	return (*clientv3.StatusResponse)(m.s.statusResponse()), nil
}

func (m *nativeMaintenance) HashKV(ctx context.Context, _ string, rev int64) (*clientv3.HashKVResponse, error) {
	resp, err := m.s.hashKV(ctx, &pb.HashKVRequest{Revision: rev})
	return (*clientv3.HashKVResponse)(resp), err
}

func (m *nativeMaintenance) AlarmList(context.Context) (*clientv3.AlarmResponse, error) {
	resp, err := m.s.alarms(&pb.AlarmRequest{})
	return (*clientv3.AlarmResponse)(resp), err
}

func (m *nativeMaintenance) AlarmDisarm(context.Context, *clientv3.AlarmMember) (*clientv3.AlarmResponse, error) {
	return nil, errNoEndpoint
}

func (m *nativeMaintenance) Defragment(context.Context, string) (*clientv3.DefragmentResponse, error) {
	return &clientv3.DefragmentResponse{Header: m.s.header()}, nil
}

func (m *nativeMaintenance) SnapshotWithVersion(context.Context) (*clientv3.SnapshotResponse, error) {
	return nil, errNoEndpoint
}

func (m *nativeMaintenance) Snapshot(context.Context) (io.ReadCloser, error) {
	return nil, errNoEndpoint
}

func (m *nativeMaintenance) MoveLeader(context.Context, uint64) (*clientv3.MoveLeaderResponse, error) {
	return nil, errNoEndpoint
}

func (m *nativeMaintenance) Downgrade(context.Context, clientv3.DowngradeAction, string) (*clientv3.DowngradeResponse, error) {
	return nil, errNoEndpoint
}

// MoveLeader makes another voter lead; like etcd's, it is for the leader.
func (m *maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if lead, _ := m.s.lead.get(); !lead.Leader {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	if err := m.s.transferTo(ctx, r.TargetID); err != nil {
		return nil, proposeError(err)
	}
	return &pb.MoveLeaderResponse{Header: m.s.header()}, nil
}
