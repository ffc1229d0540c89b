// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
)

// group supervises the node's parts. One that fails is started again; only an essential one ends the others, and its
// error is the node's.
type group struct {
	ctx    context.Context // of the parts
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	board  *status.Board // may be nil
	log    *slog.Logger
}

func newGroup(ctx context.Context, board *status.Board, log *slog.Logger) *group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{ctx: ctx, cancel: cancel, board: board, log: log}
}

// run starts a part, whose line on the board follows it. A part may start others.
func (g *group) run(name string, f func(context.Context) error) { g.keep(name, false, f) }

// quiet starts a part that has a line on the board only when it has failed.
func (g *group) quiet(name string, f func(context.Context) error) { g.keep(name, true, f) }

func (g *group) keep(name string, quiet bool, f func(context.Context) error) {
	g.wg.Go(func() {
		supervise.Keep(g.ctx, supervise.Part{Name: name, Run: f, Board: g.board, Logger: g.log, Quiet: quiet})
	})
}

// essential starts a part that cannot be started a second time in one process, and without which there is no node.
func (g *group) essential(line *status.Part, f func(context.Context) error) {
	line.Set(status.Running, "")
	g.wg.Go(func() {
		err := f(g.ctx)
		if err != nil && g.ctx.Err() == nil {
			line.Set(status.Failed, err.Error())
			g.cancel(err)
			return
		}
		line.Set(status.Stopped, "")
	})
}

// wait returns when all parts have ended: nil when they were stopped, or why an essential one failed.
func (g *group) wait() error {
	<-g.ctx.Done()
	g.wg.Wait()
	g.cancel(nil)
	if err := context.Cause(g.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
