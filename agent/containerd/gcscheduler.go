// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// firstCollection is how long after the start all is looked through once: a node's first seconds are busy enough.
	firstCollection = 10 * time.Second
	// collectAfter is how long after something was removed. What is removed meanwhile is collected with it.
	collectAfter = time.Second
	// collectAgain is how long after a collection that failed.
	collectAgain = 5 * time.Second
	// changes are so many after which all is looked through although nothing was removed, as upstream does it: a lease
	// may have run out.
	changes = 100
)

// store is containerd's metadata, which knows what refers to what.
type store interface {
	// RegisterMutationCallback registers what is called after each change, and must not block. removed says that
	// something may be without an owner.
	RegisterMutationCallback(func(removed bool))
	GarbageCollect(context.Context) (gc.Stats, error)
}

// gcScheduler decides when unreferenced content is collected. It stands in for containerd's own scheduler
// (plugins/gc), which either decides by what earlier collections took, and waits for minutes on a slow disk while the
// kubelet evicts one pod after the other since it sees no more room, or looks once a second for as long as the node
// runs. This one sleeps until something is removed.
type gcScheduler struct {
	store   store
	changed atomic.Int32  // since the last collection
	removed timers.Signal // there is something to collect
	asked   timers.Signal // a caller waits

	mu      sync.Mutex
	waiting []chan<- gcResult
}

type gcResult struct {
	stats gc.Stats
	err   error
}

func newGCScheduler(s store) *gcScheduler {
	c := &gcScheduler{store: s, removed: timers.NewSignal(), asked: timers.NewSignal()}
	s.RegisterMutationCallback(func(removed bool) {
		if n := c.changed.Add(1); removed || n >= changes {
			c.removed.Send()
		}
	})
	return c
}

// ScheduleAndWait collects at once, for who removes and wants the room. containerd's services call it.
func (c *gcScheduler) ScheduleAndWait(ctx context.Context) (gc.Stats, error) {
	done := make(chan gcResult, 1) // one: the caller may have given up
	c.mu.Lock()
	c.waiting = append(c.waiting, done)
	c.mu.Unlock()
	c.asked.Send()
	select {
	case out := <-done:
		return out.stats, out.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run collects until ctx is done.
func (c *gcScheduler) run(ctx context.Context) {
	due := time.NewTimer(firstCollection)
	defer due.Stop()
	removed := timers.Signal(nil) // while a collection is to come, it is for this too
	for {
		select {
		case <-ctx.Done():
			return
		case <-removed:
			removed = nil
			due.Reset(collectAfter)
			continue
		case <-c.asked:
			if !c.anyWaits() { // a collection that was under way was for it
				continue
			}
			due.Stop()
		case <-due.C:
		}
		removed = c.removed
		if err := c.collect(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Error("unreferenced content and snapshots could not be collected; it is tried again")
			removed = nil
			due.Reset(collectAgain)
		}
	}
}

func (c *gcScheduler) anyWaits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) > 0
}

// collect collects what has been removed until now, and tells who waits for it.
func (c *gcScheduler) collect(ctx context.Context) error {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	select { // before it begins: what is removed meanwhile may be passed over
	case <-c.removed:
	default:
	}
	c.changed.Store(0)
	stats, err := c.store.GarbageCollect(ctx)
	if err != nil {
		err = fmt.Errorf("collect unreferenced content: %w", err)
	}
	for _, w := range waiting {
		w <- gcResult{stats, err}
	}
	return err
}

// registerGCScheduler adds the scheduler as the plugin that decides when to collect. It must be called before
// server.New, which builds the plugin graph.
func registerGCScheduler() {
	registry.Register(&plugin.Registration{
		Type:     plugins.GCPlugin,
		ID:       "coracle",
		Requires: []plugin.Type{plugins.MetadataPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			metadata, err := ic.GetSingle(plugins.MetadataPlugin)
			if err != nil {
				return nil, fmt.Errorf("find containerd's metadata: %w", err)
			}
			s, ok := metadata.(store)
			if !ok {
				return nil, errors.New("containerd's metadata is not collected as before")
			}
			c := newGCScheduler(s)
			go c.run(ic.Context) // until containerd stops; there is no way to wait for it, as for upstream's
			return c, nil
		},
	})
}
