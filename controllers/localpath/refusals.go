// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// refusalsLast is how long a refusal is remembered: until each of the possible nodes has been tried. Upstream's
	// volume controller waits half a second after the first failure of a claim. It doubles the wait each time, up to
	// two minutes, so that this is about 700 attempts.
	refusalsLast = 24 * time.Hour
	// refusalsMost is how many refusals are remembered, in two or three megabytes. Beyond that the oldest one is
	// evicted. A user who may write claims can cause any number of refusals.
	refusalsMost = 20_000
)

// Refusals remembers for a while which nodes made no volume for a claim: they lack space or the folder, or do not
// answer. The scheduler reads it (scheduler.Options), since it would otherwise choose the node with the best score
// again. It is in memory only: a new leader asks each node once more. It is safe for concurrent use. A nil Refusals
// remembers nothing.
type Refusals struct {
	now func() time.Time

	mu    sync.Mutex
	times map[refusal]time.Time // the time of the last refusal
}

// refusal is a claim and the node that refused it.
type refusal struct {
	claim types.UID
	node  string
}

// NewRefusals returns empty Refusals. now is the clock.
func NewRefusals(now func() time.Time) *Refusals {
	return &Refusals{now: now, times: map[refusal]time.Time{}}
}

// add records that a node has just refused a claim.
func (r *Refusals) add(claim types.UID, node string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.times[refusal{claim, node}] = now
	if len(r.times) <= refusalsMost {
		return
	}
	oldest, since := refusal{claim, node}, now
	for of, at := range r.times {
		if at.Before(since) {
			oldest, since = of, at
		}
	}
	delete(r.times, oldest)
	maps.DeleteFunc(r.times, func(_ refusal, at time.Time) bool { return now.Sub(at) >= refusalsLast })
}

// Since returns the time since a node last refused a claim. It returns false if there was no refusal lately.
func (r *Refusals) Since(claim types.UID, node string) (time.Duration, bool) {
	if r == nil {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.times[refusal{claim, node}]
	if since := r.now().Sub(at); ok && since < refusalsLast {
		return since, true
	}
	return 0, false
}
