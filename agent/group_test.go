// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
)

func TestGroup(t *testing.T) {
	board := status.NewBoard(time.Now)
	until := func(ctx context.Context) error {
		<-ctx.Done()
		return errors.New("a consequence of the end, and no news")
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := newGroup(ctx, board, slog.New(slog.DiscardHandler))
	g.essential(board.Part("told to end"), until)
	cancel()
	if err := g.wait(); err != nil {
		t.Errorf("told to end: %v", err)
	}

	g = newGroup(t.Context(), board, slog.New(slog.DiscardHandler))
	g.run("other", until)
	cause := errors.New("no room")
	g.quiet("starter", func(context.Context) error { // a part that starts another
		g.essential(board.Part("failing"), func(context.Context) error { return cause })
		return nil
	})
	if err := g.wait(); !errors.Is(err, cause) {
		t.Errorf("got %v, want the first failure", err)
	}
	states := map[string]status.State{}
	for _, c := range board.Components() {
		states[c.Name] = c.State
	}
	if states["failing"] != status.Failed || states["other"] != status.Stopped || states["told to end"] != status.Stopped || len(states) != 3 {
		t.Errorf("the board says %v", states)
	}
}

// TestGroupGoesOn: a part that is not essential and fails ends neither the others nor the node, and is started again.
func TestGroupGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := status.NewBoard(time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		g := newGroup(ctx, board, slog.New(slog.DiscardHandler))
		runs := 0
		g.run("cluster dns", func(ctx context.Context) error {
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
		if err := g.wait(); err != nil {
			t.Error(err)
		}
	})
}
