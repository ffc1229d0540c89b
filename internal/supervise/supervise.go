// SPDX-License-Identifier: Apache-2.0

// Package supervise runs the parts without which a process can continue. A part that fails is started again.
//
// It decides how soon that is done, and reports the failure on the board and in the log. It never ends a process;
// docs/architecture.md lists what does.
//
// Its goroutines: one for each part of a group, which Wait waits for.
package supervise

import (
	"context"
	"log/slog"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// shortestWait and longest are the shortest and the longest wait before a part is started again. The wait doubles
	// each time.
	shortestWait, longestWait = time.Second, time.Minute
)

// Part is something that runs as long as the process. Name and Run are required. Board and Logger may be nil.
type Part struct {
	Name string
	// Run runs the part until its context is done. It is called again after it has returned an error. When it returns
	// nil, the part has nothing more to do.
	Run    func(context.Context) error
	Board  *status.Board
	Logger *slog.Logger
	// Quiet omits the part from the board until it has failed.
	Quiet bool
}

// Run runs a part until ctx is done or the part has nothing more to do.
func Run(ctx context.Context, p Part) {
	if !p.Quiet {
		p.set(status.Running, "")
	}
	failed := false
	for wait := shortestWait; ; wait = min(2*wait, longestWait) {
		began := time.Now()
		err := p.Run(ctx)
		if err == nil || ctx.Err() != nil {
			break
		}
		if time.Since(began) > longestWait {
			wait = shortestWait
		}
		failed = true
		if p.Logger != nil {
			p.Logger.Error("a part failed and is started again; the others go on", "part", p.Name, "after", wait, "error", err)
		}
		p.set(status.Failed, "it is started again after "+wait.String()+", and all else goes on: "+err.Error())
		if !timers.Sleep(ctx, wait) {
			p.set(status.Stopped, "")
			return
		}
		p.set(status.Running, "")
	}
	switch {
	case p.Quiet && failed && ctx.Err() == nil:
		p.set(status.Running, "") // the part had failed, has succeeded now, and what it started runs
	case !p.Quiet || failed:
		p.set(status.Stopped, "")
	}
}

func (p Part) set(s status.State, message string) {
	p.Board.Part(p.Name).Set(s, message)
}
