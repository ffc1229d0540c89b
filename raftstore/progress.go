// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// progress tells watches that asked for it, now and then, how far the store
// is. It does nothing while the revision stands still.
type progress struct {
	clock    clock.WithTicker
	interval time.Duration
	revision func() int64

	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

// add includes a watcher until the returned function is called.
func (p *progress) add(w *watcher) (remove func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers[w] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, w)
	}
}

// run reports until ctx is done.
func (p *progress) run(ctx context.Context) {
	ticker := p.clock.NewTicker(p.interval)
	defer ticker.Stop()
	var last int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		now := p.revision()
		if now == last {
			continue
		}
		last = now
		p.mu.Lock()
		for w := range p.watchers {
			w.requestProgress()
		}
		p.mu.Unlock()
	}
}
