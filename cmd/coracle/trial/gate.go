// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// DefaultSoak is for how long all conditions have to hold together.
	DefaultSoak = time.Minute
	// pause is the time between two observations.
	pause = 5 * time.Second
	// observeTimeout is how long one observation may take. A condition that takes longer does not hold.
	observeTimeout = 45 * time.Second
	// leastNotReady is for how long a node may at least be not Ready in a trial.
	leastNotReady = 40 * time.Second
)

// errNodeNotReady is the end of a trial that would cost the node its pods.
var errNodeNotReady = errors.New("its node was not Ready for so long that its pods would soon have been evicted")

// Gate waits until a candidate may be committed.
type Gate struct {
	Before Facts
	// Observe returns what holds now, when ctx is done at the latest.
	Observe func(ctx context.Context) Facts
	// Soak is for how long all conditions have to hold together.
	Soak time.Duration
	// Changed is called with the conditions that do not hold, whenever these have changed, and at first.
	Changed func(failing []string)
}

// Wait returns nil once all conditions have held together for the soak, errNodeNotReady when the node's pods cannot
// wait for that, and else when ctx is done. It uses no wall clock: boards begin in 1970.
func (g Gate) Wait(ctx context.Context) error {
	var since time.Time      // when all conditions began to hold; zero while one does not
	var lost time.Time       // when the node began not to be Ready; zero while it is
	atMost := observeTimeout // for the next observation
	var last []string
	for first := true; ; first = false {
		began := time.Now()
		observing, cancel := context.WithTimeout(ctx, atMost)
		now := g.Observe(observing)
		failing := Judge(g.Before, now)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if first || !slices.Equal(conditions(failing), conditions(last)) {
			g.Changed(failing)
		}
		last = failing
		if now.Pods != nil { // else the API did not answer, and the node's state is not known
			atMost = observeTimeout
			switch {
			case !slices.Contains(conditions(failing), condNode):
				lost = time.Time{}
			case lost.IsZero():
				lost = began
			}
			if !lost.IsZero() && now.Tolerated > 0 {
				left := max(leastNotReady, now.Tolerated*2/3) - time.Since(lost)
				if left <= 0 {
					return errNodeNotReady
				}
				atMost = min(atMost, max(left, 2*apiTimeout)) // the operator's own check may be slow, or hang for lack of the node
			}
		}
		switch {
		case len(failing) > 0:
			since = time.Time{}
		case since.IsZero():
			since = began
		}
		if !since.IsZero() && time.Since(since) >= g.Soak {
			return nil
		}
		wait := pause
		if !since.IsZero() {
			wait = min(pause, g.Soak-time.Since(since))
		}
		if !timers.Sleep(ctx, wait) {
			return ctx.Err()
		}
	}
}

// conditions returns the names of the conditions: numbers in a reason change all the time.
func conditions(failing []string) []string {
	out := make([]string, len(failing))
	for i, f := range failing {
		out[i], _, _ = strings.Cut(f, ": ")
	}
	return out
}
