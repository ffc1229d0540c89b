// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// requiresLeader says whether a context is one of clientv3.WithRequireLeader.
func requiresLeader(ctx context.Context) bool {
	md, ok := metadata.FromOutgoingContext(ctx)
	return ok && slices.Contains(md[rpctypes.MetadataRequireLeaderKey], rpctypes.MetadataHasLeader)
}

// whileLed makes a call. It returns an error if the request requires a leader and there is none.
func whileLed[Q, R any](ctx context.Context, api *etcdapi.API, call func(context.Context, *Q) (*R, error), q *Q) (*R, error) {
	if requiresLeader(ctx) {
		if err := api.LeaderRequired(ctx); err != nil {
			return nil, err
		}
	}
	return call(ctx, q)
}
