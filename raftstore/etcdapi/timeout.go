// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"
)

// WithTimeout limits how long a request may take the store. ContextError distinguishes its end from that of the
// client's context.
func WithTimeout(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, rpctypes.ErrGRPCTimeout)
}

// ContextError returns the error for a request whose context ended. If the request took the store too long
// (WithTimeout), it is etcd's error for that, which has the code Unavailable and leaves open whether a write was done.
// If the client cancelled the request or its deadline has passed, it is the error that a gRPC call would return.
func ContextError(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), rpctypes.ErrGRPCTimeout) {
		return rpctypes.ErrGRPCTimeout
	}
	return status.FromContextError(ctx.Err()).Err()
}
