// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"
)

// WithTimeout bounds the time that a request may take the store. ContextError tells its end from the client's.
func WithTimeout(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, rpctypes.ErrGRPCTimeout)
}

// ContextError is the error of a request whose context ended. If the request took the store too long (WithTimeout),
// that is etcd's word for it, which leaves open whether a write was done and has the code Unavailable. If the client
// gave up, or said how long it would wait, it is what a gRPC call would give.
func ContextError(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), rpctypes.ErrGRPCTimeout) {
		return rpctypes.ErrGRPCTimeout
	}
	return status.FromContextError(ctx.Err()).Err()
}
