// SPDX-License-Identifier: Apache-2.0

package etcdclient

import (
	"context"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// requiresLeader says whether a context is clientv3.WithRequireLeader's.
func requiresLeader(ctx context.Context) bool {
	md, ok := metadata.FromOutgoingContext(ctx)
	return ok && slices.Contains(md[rpctypes.MetadataRequireLeaderKey], rpctypes.MetadataHasLeader)
}

// leaderIfRequired fails if a request requires a leader and there is none.
func leaderIfRequired(ctx context.Context, api *etcdapi.API) error {
	if !requiresLeader(ctx) {
		return nil
	}
	return api.LeaderRequired(ctx)
}
