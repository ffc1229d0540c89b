// SPDX-License-Identifier: Apache-2.0

package supervise_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFailedPartRestartsWithBackoff: a part that fails is started again after longer and longer waits, which begin
// again once it has run for a while, and the board says so.
func TestFailedPartRestartsWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := status.NewBoard(time.Now)
		began := time.Now()
		var starts []time.Duration
		fail := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go supervise.Run(ctx, supervise.Part{Name: "relay", Board: board, Quiet: true, Run: func(ctx context.Context) error {
			starts = append(starts, time.Since(began))
			switch len(starts) {
			case 1:
				<-fail
			case 9:
				time.Sleep(2 * supervise.Longest) // fake time
			case 10:
				<-ctx.Done()
				return ctx.Err()
			}
			return errors.New("no room")
		}})
		synctest.Wait()
		testenv.Equal(t, len(board.Components()), 0, "a line without trouble:")
		close(fail)
		time.Sleep(supervise.First / 2) // fake time
		synctest.Wait()
		if c := board.Components(); len(c) != 1 || c[0].State != status.Failed || !strings.Contains(c[0].Message, "no room") {
			t.Errorf("the board says %+v", c)
		}
		time.Sleep(time.Hour) // fake time
		synctest.Wait()
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183, 304}
		for i := range want {
			testenv.Require(t, len(starts) == len(want) && starts[i] == want[i]*time.Second,
				"started after %v, want seconds %v", starts, want)
		}
		testenv.Equal(t, board.Components()[0].State, status.Running, "the board says")
		cancel()
		synctest.Wait()
		testenv.Equal(t, board.Components()[0].State, status.Stopped, "at the end the board says")
	})
}

// TestFinishedPartIsNotRestarted: a part that has nothing more to do is not started again.
func TestFinishedPartIsNotRestarted(t *testing.T) {
	board, runs := status.NewBoard(time.Now), 0
	supervise.Run(t.Context(), supervise.Part{Name: "images", Board: board, Run: func(context.Context) error { runs++; return nil }})
	if c := board.Components(); runs != 1 || len(c) != 1 || c[0].State != status.Stopped {
		t.Errorf("%d runs, the board says %+v", runs, c)
	}
}

// TestKeepDoneAfterFailure: the line of a part that fails first, and then has done what there was to do, says nothing
// of trouble.
func TestKeepDoneAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board, runs := status.NewBoard(time.Now), 0
		supervise.Run(t.Context(), supervise.Part{Name: "network", Board: board, Quiet: true, Run: func(context.Context) error {
			if runs++; runs == 1 {
				return errors.New("no room")
			}
			return nil
		}})
		if c := board.Components(); runs != 2 || len(c) != 1 || c[0].State != status.Running || c[0].Message != "" {
			t.Errorf("%d runs, the board says %+v", runs, c)
		}
	})
}
