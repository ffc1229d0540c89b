// SPDX-License-Identifier: Apache-2.0

package etcdapi

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// LeaderRequired returns an error if there is no leader now. It is for requests whose client requires a leader
// (clientv3.WithRequireLeader) and would rather be refused than answered by a server that is cut off. If this server
// has just started, it first waits for a leader.
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

// WhileLeader returns a context for a stream that also ends when there has been no leader for a while. It returns the
// errors of LeaderRequired. LeaderLost says whether the context ended for that reason.
func (a *API) WhileLeader(ctx context.Context) (_ context.Context, release func(), err error) {
	if err := a.LeaderRequired(ctx); err != nil {
		return nil, nil, err
	}
	_, present := a.o.Store.LeaderPresence()
	ctx, release = whilePresent(ctx, present)
	return ctx, release, nil
}

// AwaitLeader returns when a leader is known, or an error when ctx is done or the store closes.
func (a *API) AwaitLeader(ctx context.Context) error { return a.o.Store.AwaitLeader(ctx) }

func whilePresent(ctx, present context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(present, func() { cancel(rpctypes.ErrGRPCNoLeader) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// LeaderLost says whether a context of WhileLeader ended for lack of a leader.
func LeaderLost(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), rpctypes.ErrGRPCNoLeader)
}

// StreamError returns the error for a stream whose context ended.
func StreamError(ctx context.Context) error {
	if LeaderLost(ctx) {
		return rpctypes.ErrGRPCNoLeader
	}
	return ContextError(ctx)
}
