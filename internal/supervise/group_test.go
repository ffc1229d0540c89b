// SPDX-License-Identifier: Apache-2.0

package supervise_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestGroupEndsWithTheFirstFailure(t *testing.T) {
	board := status.NewBoard(time.Now)
	until := func(ctx context.Context) error {
		<-ctx.Done()
		return errors.New("a consequence of the end, and no news")
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := supervise.NewGroup(ctx, board, slog.New(slog.DiscardHandler))
	g.Essential(board.Part("stopped"), until)
	cancel()
	testenv.Check(t, g.Wait(), "stopped")

	g = supervise.NewGroup(t.Context(), board, slog.New(slog.DiscardHandler))
	g.Run("other", until)
	cause := errors.New("no room")
	g.Quiet("starter", func(context.Context) error { // a part that starts another
		g.Essential(board.Part("failing"), func(context.Context) error { return cause })
		return nil
	})
	testenv.ErrorIs(t, g.Wait(), cause)

	g = supervise.NewGroup(t.Context(), nil, slog.New(slog.DiscardHandler))
	g.Essential(nil, func(context.Context) error { return fmt.Errorf("a request of its own: %w", context.Canceled) })
	testenv.Fails(t, g.Wait(), "a failure by something that was canceled elsewhere is taken for an ordinary end")

	g = supervise.NewGroup(t.Context(), nil, slog.New(slog.DiscardHandler))
	g.Stop(errors.Join(context.Canceled, cause)) // as a term's parts and what outlived them
	testenv.WantError(t, g.Wait(), cause.Error())
	states := map[string]status.State{}
	for _, c := range board.Components() {
		states[c.Name] = c.State
	}
	if states["failing"] != status.Failed || states["other"] != status.Stopped || states["stopped"] != status.Stopped || len(states) != 3 {
		t.Errorf("the board says %v", states)
	}
}

// TestGroupEndWaitsForAllParts: the end of a group waits for all of its parts, and the first reason for it counts.
func TestGroupEndWaitsForAllParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		slow := func(ctx context.Context) {
			<-ctx.Done()
			time.Sleep(time.Second) // fake time
			ended++
		}
		g := supervise.NewGroup(t.Context(), nil, slog.New(slog.DiscardHandler))
		g.Go(slow)
		g.Go(func(context.Context) {}) // which has nothing more to do, and ends nothing
		synctest.Wait()
		testenv.True(t, g.Context().Err() == nil, "a part that has nothing more to do has ended the others")
		g.End()
		testenv.Equal(t, ended, 1, "a part still runs:")

		first := errors.New("no room")
		g = supervise.NewGroup(t.Context(), nil, slog.New(slog.DiscardHandler))
		g.Go(slow)
		g.Essential(nil, func(context.Context) error {
			g.Stop(first)
			return errors.New("a consequence")
		})
		if err := g.Wait(); !errors.Is(err, first) || ended != 2 {
			t.Errorf("it ended with %v, after %d parts", err, ended)
		}
	})
}

// TestPanicEndsTheProcess: nothing catches the panic of a part, since what it had begun is in no known state.
func TestPanicEndsTheProcess(t *testing.T) {
	const in = "CORACLE_TEST_PANIC"
	if os.Getenv(in) != "" {
		g := supervise.NewGroup(context.Background(), nil, slog.New(slog.DiscardHandler))
		g.Quiet("relay", func(context.Context) error { panic("a damaged vote") })
		_ = g.Wait() // the process ends before
		return
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	c.Env = append(os.Environ(), in+"=1")
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "panic: a damaged vote") {
		t.Errorf("%v: %s", err, out)
	}
}
