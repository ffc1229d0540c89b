// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"
	"crypto/sha256"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// maintenanceServer serves etcd's Maintenance service over gRPC.
type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	api *etcdapi.API
}

func (m *maintenanceServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return m.api.Status(), nil
}

func (m *maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	resp, err := m.api.HashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: resp.Header, Hash: resp.Hash}, nil
}

func (m *maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	return m.api.HashKV(ctx, r)
}

func (m *maintenanceServer) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return m.api.Alarm(r)
}

// Defragment does nothing: the state is in memory, and the log's files need no defragmentation.
func (m *maintenanceServer) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return &pb.DefragmentResponse{Header: m.api.Header()}, nil
}

// Snapshot streams a backup in our format. As in etcd, its length is padded to a multiple of 512, followed by a
// SHA-256, by which clients check that the file is complete.
func (m *maintenanceServer) Snapshot(_ *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	w := &blobWriter{stream: stream, header: m.api.Header()}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	if _, err := m.api.Backup(stream.Context(), out); err != nil {
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
	// The data is copied: gRPC may still be sending it when the caller changes p.
	blob := append([]byte(nil), p...)
	return len(p), w.stream.Send(&pb.SnapshotResponse{Header: w.header, Blob: blob, Version: etcdapi.Version})
}

// MoveLeader makes another voter the leader.
func (m *maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	return m.api.MoveLeader(ctx, r)
}
