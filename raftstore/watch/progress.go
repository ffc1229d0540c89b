// SPDX-License-Identifier: Apache-2.0

package watch

import "context"

// RunProgress tells watches that asked for it, now and then, how far the store
// is, until ctx is done. As etcd's, a watch that has had events since the last
// time is left out, and one that has not is told, even if the revision stands
// still: that is how its client knows that it still follows.
func (h *Hub) RunProgress(ctx context.Context) {
	ticker := h.clock.NewTicker(h.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		h.mu.Lock()
		for w := range h.reported {
			if w.quiet {
				w.progress = true
				w.ring()
			}
			w.quiet = true
		}
		h.mu.Unlock()
	}
}
