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
	// firstCollection is how long after the start the first collection runs: a node's first seconds are busy enough.
	firstCollection = 10 * time.Second
	// collectAfter is how long after a removal a collection runs. It collects what is removed meanwhile, too.
	collectAfter = time.Second
	// collectAgain is how long after a failed collection the next one runs.
	collectAgain = 5 * time.Second
	// changes is the number of changes after which a collection runs although nothing was removed, as upstream does it:
	// a lease may have expired.
	changes = 100
)

// store is containerd's metadata, which knows the references between its objects.
type store interface {
	// RegisterMutationCallback registers a function that is called after each change and must not block. removed means
	// that something may have no reference any more.
	RegisterMutationCallback(func(removed bool))
	GarbageCollect(context.Context) (gc.Stats, error)
}

// gcScheduler decides when unreferenced content is collected. It replaces containerd's own scheduler (plugins/gc). That
// one either derives the pause from the duration of earlier collections, or it checks once a second as long as the node
// runs. On a slow disk the pause would be minutes, while the kubelet evicts one pod after the other because the disk is
// full. This scheduler sleeps until something is removed.
type gcScheduler struct {
	store       store
	changeCount atomic.Int32  // since the last collection
	removal     timers.Signal // there is something to collect
	requested   timers.Signal // a caller waits

	mu      sync.Mutex
	waiting []chan<- gcResult
}

type gcResult struct {
	stats gc.Stats
	err   error
}

func newGCScheduler(s store) *gcScheduler {
	c := &gcScheduler{store: s, removal: timers.NewSignal(), requested: timers.NewSignal()}
	s.RegisterMutationCallback(func(removed bool) {
		if n := c.changeCount.Add(1); removed || n >= changes {
			c.removal.Send()
		}
	})
	return c
}

// ScheduleAndWait collects at once, for a caller that removes something and needs the space. containerd's services call
// it.
func (c *gcScheduler) ScheduleAndWait(ctx context.Context) (gc.Stats, error) {
	done := make(chan gcResult, 1) // one: the caller may not wait any more
	c.mu.Lock()
	c.waiting = append(c.waiting, done)
	c.mu.Unlock()
	c.requested.Send()
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
	removed := timers.Signal(nil) // nil while a collection is pending, which covers later removals too
	for {
		select {
		case <-ctx.Done():
			return
		case <-removed:
			removed = nil
			due.Reset(collectAfter)
			continue
		case <-c.requested:
			if !c.anyWaits() { // the collection that has just ended was for this request too
				continue
			}
			due.Stop()
		case <-due.C:
		}
		removed = c.removal
		if err := c.collect(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Error("unreferenced content and snapshots could not be collected; retrying")
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

// collect collects what has been removed until now, and sends the result to the waiting callers.
func (c *gcScheduler) collect(ctx context.Context) error {
	c.mu.Lock()
	waiting := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	select { // before it begins: it may miss what is removed meanwhile
	case <-c.removal:
	default:
	}
	c.changeCount.Store(0)
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
				return nil, errors.New("containerd's metadata store lacks the methods for garbage collection")
			}
			c := newGCScheduler(s)
			go c.run(ic.Context) // until containerd stops; it cannot be waited for, nor can upstream's
			return c, nil
		},
	})
}
