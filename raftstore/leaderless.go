// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// requiresLeader says whether a watch's client would rather lose it than hear
// nothing from a server that is cut off (clientv3.WithRequireLeader).
func requiresLeader(md metadata.MD, _ bool) bool {
	return slices.Contains(md.Get(rpctypes.MetadataRequireLeaderKey), rpctypes.MetadataHasLeader)
}

// requireLeader returns a context that also ends when there has been no leader
// for long, if that is required. lonely says whether that was why.
func (s *Store) requireLeader(ctx context.Context, required bool) (_ context.Context, lonely func() bool, release func()) {
	if !required {
		return ctx, func() bool { return false }, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.leader.withoutLeader(), func() { cancel(rpctypes.ErrGRPCNoLeader) })
	return ctx, func() bool { return errors.Is(context.Cause(ctx), rpctypes.ErrGRPCNoLeader) }, func() {
		stop()
		cancel(nil)
	}
}
