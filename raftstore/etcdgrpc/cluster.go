// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// clusterServer serves etcd's Cluster service over gRPC.
type clusterServer struct {
	pb.UnimplementedClusterServer
	api *etcdapi.API
	url string
}

func (c *clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	resp, err := c.api.MemberList(ctx, r)
	c.setOwnClientURLs(resp.GetHeader(), resp.GetMembers())
	return resp, err
}

// MemberRemove removes a server from the cluster for good.
func (c *clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	resp, err := c.api.MemberRemove(ctx, r)
	c.setOwnClientURLs(resp.GetHeader(), resp.GetMembers())
	return resp, err
}

// setOwnClientURLs sets the URL at which this server's clients connect. Without a response there are no members.
func (c *clusterServer) setOwnClientURLs(h *pb.ResponseHeader, members []*pb.Member) {
	for _, m := range members {
		if m.ID == h.MemberId {
			m.ClientURLs = []string{c.url}
		}
	}
}

// MemberAdd is not needed: a server joins by itself.
func (c *clusterServer) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, status.Error(codes.Unimplemented, "raftstore: members are not added through this API: start the new server with the address of "+
		"an existing one, and it joins by itself")
}

// MemberPromote gives a server a vote, in place of a voter that does not store. Without it, the leader assigns the
// votes.
func (c *clusterServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	resp, err := c.api.MemberPromote(ctx, r)
	c.setOwnClientURLs(resp.GetHeader(), resp.GetMembers())
	return resp, err
}

// MemberUpdate is not needed: a server announces its address when it starts.
func (c *clusterServer) MemberUpdate(context.Context, *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, status.Error(codes.Unimplemented, "raftstore: members are not updated through this API: a server announces its "+
		"new address when it starts")
}
