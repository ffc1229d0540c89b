// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// refusalsLast is how long a refusal is remembered: until each of the nodes that there may be has had its turn.
	// Upstream's controller of volumes waits after each failure of a claim, half a second and then twice as long each
	// time, up to two minutes; so that is about 700 attempts.
	refusalsLast = 24 * time.Hour
	// refusalsMost is how many are remembered, in two or three megabytes; then the oldest one is forgotten. A user who
	// may write claims can have as many of them refused as he likes.
	refusalsMost = 20_000
)

// Refusals remembers for a while which nodes gave a claim no volume: they have no room, no such folder, or do not
// answer. The scheduler gets them (scheduler.Options), for it knows nothing of that and would choose the same node
// again for as long as it likes that node best. It is kept in memory alone: a server that begins to lead asks each node
// once more. It is safe for concurrent use, and nil remembers nothing.
type Refusals struct {
	now func() time.Time

	mu sync.Mutex
	at map[refusal]time.Time // the last time
}

// refusal is a claim and the node that refused it.
type refusal struct {
	claim types.UID
	node  string
}

// NewRefusals begins with none; now is the clock.
func NewRefusals(now func() time.Time) *Refusals {
	return &Refusals{now: now, at: map[refusal]time.Time{}}
}

// add notes that a node has just refused a claim.
func (r *Refusals) add(claim types.UID, node string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.at[refusal{claim, node}] = now
	if len(r.at) <= refusalsMost {
		return
	}
	oldest, since := refusal{claim, node}, now
	for of, at := range r.at {
		if at.Before(since) {
			oldest, since = of, at
		}
	}
	delete(r.at, oldest)
	maps.DeleteFunc(r.at, func(_ refusal, at time.Time) bool { return now.Sub(at) >= refusalsLast })
}

// Since is how long ago a node refused a claim for the last time, and false if it did not lately.
func (r *Refusals) Since(claim types.UID, node string) (time.Duration, bool) {
	if r == nil {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.at[refusal{claim, node}]
	if since := r.now().Sub(at); ok && since < refusalsLast {
		return since, true
	}
	return 0, false
}
