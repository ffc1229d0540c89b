// SPDX-License-Identifier: Apache-2.0

package etcdgrpc

import (
	"context"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// requiresLeader says whether a client made the request with clientv3.WithRequireLeader.
func requiresLeader(ctx context.Context) bool {
	return slices.Contains(metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey), rpctypes.MetadataHasLeader)
}

// leaderIfRequired refuses requests that require a leader when there is none.
func leaderIfRequired(api *etcdapi.API) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, r any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		if requiresLeader(ctx) {
			if err := api.LeaderRequired(ctx); err != nil {
				return nil, err
			}
		}
		return handle(ctx, r)
	}
}

// whileLeaderIfRequired refuses streams that require a leader when there is none. It also ends their contexts when
// there has been no leader for a while, and then their handlers return.
func whileLeaderIfRequired(api *etcdapi.API) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
		if !requiresLeader(stream.Context()) {
			return handle(srv, stream)
		}
		ctx, release, err := api.WhileLeader(stream.Context())
		if err != nil {
			return err
		}
		defer release()
		return handle(srv, leaderStream{stream, ctx})
	}
}

type leaderStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s leaderStream) Context() context.Context { return s.ctx }
