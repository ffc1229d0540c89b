// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
)

// leaderlessRetry is how long a server that starts waits before it asks the store again that had no leader. The
// question itself takes seconds then.
const leaderlessRetry = 200 * time.Millisecond

// retryUntilLeader does something that needs the store, again and again as long as what keeps it from that passes by
// itself: the leader that was there when the store became ready may be gone a moment later, and a server does not end
// because of that.
func (s *Server) retryUntilLeader(ctx context.Context, do func() error) error {
	last := ""
	for {
		err := do()
		if err == nil {
			if last != "" {
				s.board.store.Set(status.Running, "")
			}
			return nil
		}
		if ctx.Err() != nil || !passes(err) {
			return err
		}
		if err.Error() != last {
			last = err.Error()
			s.board.store.Set(status.Degraded, "it does not answer any more; it is asked again: "+last)
			s.log.Warn("the store does not answer any more; it is asked again", "error", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(leaderlessRetry):
		}
	}
}

// awaitStore waits until the store answers what only a leader's word makes sure.
func (s *Server) awaitStore(ctx context.Context, store *raftstore.Store) error {
	return s.retryUntilLeader(ctx, func() error {
		_, err := store.Client().KV.Get(ctx, "/registry", clientv3.WithCountOnly())
		return err
	})
}

// passes says whether an error of the store's is one that a leader cures.
func passes(err error) bool {
	code := grpcstatus.Code(err)
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = e.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}
