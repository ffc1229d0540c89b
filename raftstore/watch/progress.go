// SPDX-License-Identifier: Apache-2.0

package watch

import "context"

// RunProgress tells watches that asked for it, now and then, how far the store
// is, until ctx is done, even if the revision stands still: that is how a
// watch's client knows that it still follows. etcd leaves out a watch that has
// had events since the last time. But the API server shows its client only
// those that a selector lets through, perhaps none: such a client would go on
// from where it began, which is no history any more.
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
			w.progress = true
			w.signal.Send()
		}
		h.mu.Unlock()
	}
}
