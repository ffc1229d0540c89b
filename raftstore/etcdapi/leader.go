// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// LeaderRequired is for requests whose client requires a leader
// (clientv3.WithRequireLeader): it would rather be refused than be answered by a
// server that is cut off. It fails if there is no leader now. A server that has
// just started may first find one.
func (a *API) LeaderRequired(ctx context.Context) error {
	known, present := a.o.Store.LeaderPresence()
	if known {
		return nil
	}
	select {
	case <-a.o.Ready:
		return rpctypes.ErrGRPCNoLeader
	default:
	}
	ctx, release := whilePresent(ctx, present)
	defer release()
	if err := a.awaitReady(ctx); err != nil {
		if LeaderLost(ctx) {
			return rpctypes.ErrGRPCNoLeader
		}
		return err
	}
	return nil
}

// WhileLeader returns a stream's context that also ends when there has been no
// leader for long. It fails as LeaderRequired does. LeaderLost says whether that
// was why the context ended.
func (a *API) WhileLeader(ctx context.Context) (_ context.Context, release func(), err error) {
	if err := a.LeaderRequired(ctx); err != nil {
		return nil, nil, err
	}
	_, present := a.o.Store.LeaderPresence()
	ctx, release = whilePresent(ctx, present)
	return ctx, release, nil
}

func whilePresent(ctx, present context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(present, func() { cancel(rpctypes.ErrGRPCNoLeader) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// LeaderLost says whether a context of WhileLeader ended for want of a leader.
func LeaderLost(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), rpctypes.ErrGRPCNoLeader)
}

// StreamError is the error of a stream whose context ended.
func StreamError(ctx context.Context) error {
	if LeaderLost(ctx) {
		return rpctypes.ErrGRPCNoLeader
	}
	return ContextError(ctx)
}
