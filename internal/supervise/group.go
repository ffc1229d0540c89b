// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/coracle-k8s/coracle/internal/status"
)

// Group runs the parts of one scope: a process, a server with its store, an API server, a node. They start in the order
// of the calls and end together. A part that fails is started again. Only an essential part that fails ends the others,
// and its error is the scope's error.
type Group struct {
	ctx    context.Context // the context in which the parts run
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	board  *status.Board // may be nil
	log    *slog.Logger
}

// NewGroup makes a group. Its parts end when ctx is done, when Stop is called, or when an essential part fails. board
// may be nil.
func NewGroup(ctx context.Context, board *status.Board, log *slog.Logger) *Group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &Group{ctx: ctx, cancel: cancel, board: board, log: log}
}

// Context returns the context in which the parts of the group run.
func (g *Group) Context() context.Context { return g.ctx }

// Go starts a part that reports its errors itself. It may end before the others.
func (g *Group) Go(f func(context.Context)) { g.wg.Go(func() { f(g.ctx) }) }

// Run starts a part with a line on the board. A part may start others.
func (g *Group) Run(name string, f func(context.Context) error) { g.supervise(name, false, f) }

// Quiet starts a part that gets a line on the board only when it has failed.
func (g *Group) Quiet(name string, f func(context.Context) error) { g.supervise(name, true, f) }

func (g *Group) supervise(name string, quiet bool, f func(context.Context) error) {
	g.wg.Go(func() { Run(g.ctx, Part{Name: name, Run: f, Board: g.board, Logger: g.log, Quiet: quiet}) })
}

// Essential starts a part that cannot be started twice in one process, and without which the others are useless. line
// may be nil.
func (g *Group) Essential(line *status.Part, f func(context.Context) error) {
	line.Set(status.Running, "")
	g.wg.Go(func() {
		err := f(g.ctx)
		if err != nil && g.ctx.Err() == nil {
			line.Set(status.Failed, err.Error())
			g.Stop(err)
			return
		}
		line.Set(status.Stopped, "")
	})
}

// Stop ends the parts. err is the reason, and nil for an ordinary end. Only the first reason counts.
func (g *Group) Stop(err error) {
	if errors.Is(err, context.Canceled) { // the error of another context: Wait would take it for an ordinary end
		err = errors.New(err.Error())
	}
	g.cancel(err)
}

// Wait returns when all parts have ended. It returns nil when they were stopped, and the error of an essential part
// that failed.
func (g *Group) Wait() error {
	<-g.ctx.Done()
	g.wg.Wait()
	g.cancel(nil)
	if err := context.Cause(g.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// End ends the parts and waits for them.
func (g *Group) End() {
	g.cancel(nil)
	g.wg.Wait()
}
