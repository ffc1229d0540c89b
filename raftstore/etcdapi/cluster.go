// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// MemberList serves etcd's Cluster.MemberList.
func (a *API) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if _, err := a.o.Store.Linearizable(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.MemberListResponse{Header: a.Header(), Members: a.o.Store.EtcdMembers()}, nil
}

// MemberRemove serves etcd's Cluster.MemberRemove.
func (a *API) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := a.o.Store.RemoveMemberID(ctx, r.ID); err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: a.Header(), Members: a.o.Store.EtcdMembers()}, nil
}

// MemberPromote serves etcd's Cluster.MemberPromote.
func (a *API) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if err := a.o.Store.PromoteMemberID(ctx, r.ID); err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: a.Header(), Members: a.o.Store.EtcdMembers()}, nil
}
