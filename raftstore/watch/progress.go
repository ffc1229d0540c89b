// SPDX-License-Identifier: Apache-2.0

package watch

import "context"

// RunProgress makes the watches that requested it report the store's revision at each interval, until ctx is done. They
// do so even if the revision has not changed: that is how a watch's client knows that it still follows. etcd leaves out
// a watch that had events since the last report. But the API server shows its client only the events that pass a
// selector, perhaps none. Such a client would resume at the revision where it began, which may have been compacted.
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
