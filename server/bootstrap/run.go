// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// retryDelay is the pause before the objects are applied again: at a first start their namespace is created a
	// moment after the API server is ready.
	retryDelay = 200 * time.Millisecond
	dnsRetry   = 30 * time.Second
)

// Run applies the objects and retries until that succeeds or ctx is done. It calls done once, as soon as all objects
// exist for which others wait.
func Run(ctx context.Context, options func() Options, part *status.Part, done func(), log *slog.Logger) {
	done = sync.OnceFunc(done)
	last := ""
	for {
		err := Apply(ctx, options())
		if ctx.Err() != nil {
			return
		}
		wait := retryDelay
		switch {
		case err == nil:
			part.Set(status.Running, "")
			done()
			return
		case errors.Is(err, ErrDNSAddress):
			// A person has to resolve this, and needs the cluster for that.
			part.Set(status.Degraded, err.Error())
			done()
			wait = dnsRetry
		}
		if err.Error() != last {
			last = err.Error()
			log.Warn("the cluster's own objects cannot be applied yet; retrying", "error", err)
		}
		if !timers.Sleep(ctx, wait) {
			return
		}
	}
}
