// SPDX-License-Identifier: Apache-2.0

package starting

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// leaderlessRetry is the pause of a starting server before it tries a store without a leader again. The attempt itself
// then takes seconds.
const leaderlessRetry = 200 * time.Millisecond

// RetryUntilLeader calls do, and repeats it after errors that a new leader cures. The leader that existed when the
// store became ready may be lost a moment later, and a server must not end because of that. The part shows the error.
func (s *Starting) RetryUntilLeader(ctx context.Context, do func() error) error {
	last := ""
	for {
		err := do()
		if err == nil {
			if last != "" {
				s.o.Part.Set(status.Running, "")
			}
			return nil
		}
		if ctx.Err() != nil || !isTransient(err) {
			return err
		}
		if err.Error() != last {
			last = err.Error()
			s.o.Part.Set(status.Degraded, "it no longer answers; retrying: "+last)
			s.o.Logger.Warn("the store no longer answers; retrying", "error", err)
		}
		if !timers.Sleep(ctx, leaderlessRetry) {
			return err
		}
	}
}

// isTransient says whether a new leader cures an error of the store.
func isTransient(err error) bool {
	code := grpcstatus.Code(err)
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = e.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}
