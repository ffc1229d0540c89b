// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
)

// Errors of Open that a user can act on. Their messages say what is wrong, what is safe, and what to do next.
type (
	// DamageError names a file whose content is not what was written.
	DamageError = disk.DamageError
	// FormatError says that a newer version wrote the directory.
	FormatError = disk.FormatError
	// InUseError says that another process has opened the directory.
	InUseError = disk.InUseError
	// MismatchError says that the directory belongs to another cluster or server.
	MismatchError = disk.MismatchError
)

// ErrClosed is returned by calls on a closed store.
var ErrClosed = rpctypes.ErrGRPCStopped

// contextError returns the error for a request whose context ended.
func contextError(ctx context.Context) error { return etcdapi.ContextError(ctx) }

// proposeError translates raft's errors into etcd's. ctx is the context of the request. Timeouts, the loss of the
// leader and a closed store leave open whether the write happened, as in etcd.
func proposeError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, errMoved): // errMoved counts before the errors that it is joined with
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return rpctypes.ErrGRPCNoLeader
	case errors.Is(err, raft.ErrRaftShutdown):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, raft.ErrLeadershipLost):
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return rpctypes.ErrGRPCTimeout
	}
	if status.Code(err) == codes.DeadlineExceeded {
		if ctx.Err() != nil {
			return contextError(ctx)
		}
		return rpctypes.ErrGRPCTimeout // the call to the leader timed out, and the client would still have waited
	}
	// Without the errors that wrap it: clients identify etcd's errors by their text.
	var said interface{ GRPCStatus() *status.Status }
	if errors.As(err, &said) {
		return said.GRPCStatus().Err()
	}
	return rpctypes.ErrGRPCTimeoutDueToLeaderFail
}

func proposeErrorOrNil(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return proposeError(ctx, err)
}
