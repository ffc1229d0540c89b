// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/test/history"
)

// recorder collects operations from many clients. Its clock is in nanoseconds since it began.
type recorder struct {
	start time.Time

	mu  sync.Mutex
	ops []*history.Op
}

func newRecorder() *recorder { return &recorder{start: time.Now()} }

func (h *recorder) now() int64 { return time.Since(h.start).Nanoseconds() }

// add keeps a finished operation.
func (h *recorder) add(o *history.Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.ID = len(h.ops)
	h.ops = append(h.ops, o)
}

func (h *recorder) all() []*history.Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}
