//go:build e2e || bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"sync"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// burn starts processes that only compute, on no machine, until it is stopped.
func burn(t *testing.T, n int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	site := harness.NewSite(t)
	for range n {
		c := site.Command(ctx, "sh", "-c", "while :; do :; done")
		testenv.NoError(t, c.Start())
		running.Go(func() { _ = c.Wait() }) // it is killed
	}
	return sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
}
