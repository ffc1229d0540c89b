// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/coracle-k8s/coracle/internal/status"
)

// group supervises the node's parts: the first that fails ends the others, and its error is the node's.
type group struct {
	ctx    context.Context // of the parts
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newGroup(ctx context.Context) *group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{ctx: ctx, cancel: cancel}
}

// run starts a part, whose line on the board follows it; nil for none. A part may start others.
func (g *group) run(line *status.Part, f func(context.Context) error) {
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

// wait returns when all parts have ended: nil when they were told to, or why the first one failed.
func (g *group) wait() error {
	<-g.ctx.Done()
	g.wg.Wait()
	g.cancel(nil)
	if err := context.Cause(g.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
