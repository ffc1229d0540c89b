// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFailedOptionalPartIsRestarted: a part that is not essential and fails ends neither the others nor the node, and
// is started again.
func TestFailedOptionalPartIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := status.NewBoard(time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		g := NewGroup(ctx, board, slog.New(slog.DiscardHandler))
		runs := 0
		g.Run("cluster dns", func(ctx context.Context) error {
			if runs++; runs < 3 {
				return errors.New("couldn't initialize inotify: too many open files")
			}
			<-ctx.Done()
			return nil
		})
		synctest.Wait()
		if c := board.Components(); g.ctx.Err() != nil || c[0].State != status.Failed {
			t.Errorf("the node's context: %v; the board says %+v", g.ctx.Err(), c)
		}
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		if c := board.Components(); runs != 3 || c[0].State != status.Running {
			t.Errorf("%d runs, the board says %+v", runs, c)
		}
		cancel()
		testenv.Check(t, g.Wait())
	})
}
