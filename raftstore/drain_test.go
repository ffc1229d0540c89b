// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Drain waits for the writes of before, those of before an earlier Drain among them, and for no others.
func TestDrainWaitsForEarlierWritesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &Store{replica: &replica{lifecycle: lifecycle{ctx: context.Background()}}, writer: &writer{}}
		testenv.NoError(t, s.Drain(ctx))
		first, second := s.writer.writes.beginWrite(), s.writer.writes.beginWrite()
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		if err := s.Drain(short); err == nil || errors.Is(err, ErrClosed) {
			t.Fatalf("two writes are under way: %v", err)
		}
		third := s.writer.writes.beginWrite()
		drained := make(chan error, 1)
		go func() { drained <- s.Drain(ctx) }()
		synctest.Wait()
		fourth := s.writer.writes.beginWrite()
		for _, end := range []func(){first, third, second} {
			select {
			case err := <-drained:
				t.Fatalf("not all writes of before have ended: %v", err)
			default:
			}
			end()
			synctest.Wait()
		}
		testenv.NoError(t, <-drained)
		fourth()
		if err := s.Drain(ctx); err != nil || len(s.writer.writes.open) != 0 {
			t.Fatalf("nothing is under way: %v, %d sets", err, len(s.writer.writes.open))
		}
	})
}
