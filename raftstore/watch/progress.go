// SPDX-License-Identifier: Apache-2.0

package watch

import "context"

// RunProgress tells watches that asked for it, now and then, how far the store
// is, until ctx is done. It does nothing while the revision stands still.
func (h *Hub) RunProgress(ctx context.Context) {
	ticker := h.clock.NewTicker(h.interval)
	defer ticker.Stop()
	var last int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		now := h.view().Revision()
		if now == last {
			continue
		}
		last = now
		h.mu.Lock()
		for w := range h.reported {
			w.progress = true
			w.ring()
		}
		h.mu.Unlock()
	}
}
