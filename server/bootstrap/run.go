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
	// retry is how long to wait before applying the objects again: at a first start their namespace appears a moment
	// after the API server is ready.
	retry    = 200 * time.Millisecond
	dnsRetry = 30 * time.Second
)

// Run applies the objects until that succeeds or ctx is done. done is called once as soon as all is there that others
// wait for.
func Run(ctx context.Context, options func() Options, part *status.Part, done func(), log *slog.Logger) {
	done = sync.OnceFunc(done)
	last := ""
	for {
		err := Apply(ctx, options())
		if ctx.Err() != nil {
			return
		}
		wait := retry
		switch {
		case err == nil:
			part.Set(status.Running, "")
			done()
			return
		case errors.Is(err, ErrDNSAddress):
			// A matter for a person, and they need the cluster for it.
			part.Set(status.Degraded, err.Error())
			done()
			wait = dnsRetry
		}
		if err.Error() != last {
			last = err.Error()
			log.Warn("the cluster's own objects cannot be applied yet; it is tried again", "error", err)
		}
		if !timers.Sleep(ctx, wait) {
			return
		}
	}
}
