// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// testContext ends before the test run's own time limit would.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// openStore opens a store and waits until it is ready. The test closes it.
func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	ctx := testContext(t)
	if o.NodeID == "" {
		o.NodeID = "one"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := testenv.Must(Open(ctx, o))(t)
	t.Cleanup(func() { testenv.Check(t, s.Close(context.Background()), "close") })
	testenv.NoError(t, s.WaitReady(ctx))
	return s
}

// noise is a value that cannot be packed.
func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return string(b)
}
