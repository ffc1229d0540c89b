// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"testing"
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
	g := newGroup(ctx)
	g.run(board.Part("told to end"), until)
	cancel()
	if err := g.wait(); err != nil {
		t.Errorf("told to end: %v", err)
	}

	g = newGroup(t.Context())
	g.run(board.Part("other"), until)
	cause := errors.New("no room")
	g.run(nil, func(context.Context) error { // a part that starts another
		g.run(board.Part("failing"), func(context.Context) error { return cause })
		return nil
	})
	if err := g.wait(); !errors.Is(err, cause) {
		t.Errorf("got %v, want the first failure", err)
	}
	states := map[string]status.State{}
	for _, c := range board.Components() {
		states[c.Name] = c.State
	}
	if states["failing"] != status.Failed || states["other"] != status.Stopped || states["told to end"] != status.Stopped {
		t.Errorf("the board says %v", states)
	}
}
