// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// maintenance is etcd's maintenance client without a connection.
type maintenance struct{ api *etcdapi.API }

var _ clientv3.Maintenance = maintenance{}

var errNoEndpoint = errors.New("raftstore: not possible through the in-process client; connect to the store's socket")

func (m maintenance) Status(context.Context, string) (*clientv3.StatusResponse, error) {
	return (*clientv3.StatusResponse)(m.api.Status()), nil
}

func (m maintenance) HashKV(ctx context.Context, _ string, rev int64) (*clientv3.HashKVResponse, error) {
	resp, err := m.api.HashKV(ctx, &pb.HashKVRequest{Revision: rev})
	return (*clientv3.HashKVResponse)(resp), clientv3.ContextError(ctx, err)
}

func (m maintenance) AlarmList(ctx context.Context) (*clientv3.AlarmResponse, error) {
	return m.alarm(ctx, &pb.AlarmRequest{})
}

func (m maintenance) AlarmDisarm(ctx context.Context, a *clientv3.AlarmMember) (*clientv3.AlarmResponse, error) {
	return m.alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm})
}

func (m maintenance) alarm(ctx context.Context, r *pb.AlarmRequest) (*clientv3.AlarmResponse, error) {
	resp, err := m.api.Alarm(r)
	return (*clientv3.AlarmResponse)(resp), clientv3.ContextError(ctx, err)
}

func (m maintenance) Defragment(context.Context, string) (*clientv3.DefragmentResponse, error) {
	return &clientv3.DefragmentResponse{Header: m.api.Header()}, nil
}

func (m maintenance) SnapshotWithVersion(context.Context) (*clientv3.SnapshotResponse, error) {
	return nil, errNoEndpoint
}

func (m maintenance) Snapshot(context.Context) (io.ReadCloser, error) {
	return nil, errNoEndpoint
}

func (m maintenance) MoveLeader(context.Context, uint64) (*clientv3.MoveLeaderResponse, error) {
	return nil, errNoEndpoint
}

func (m maintenance) Downgrade(context.Context, clientv3.DowngradeAction, string) (*clientv3.DowngradeResponse, error) {
	return nil, errNoEndpoint
}
