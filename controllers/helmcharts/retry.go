// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// defaultBackOff is how often a failed operation is tried again if the chart does not set it, as with k3s.
	defaultBackOff = 1000
	// uninstallTries is how often the removal of a release is tried before the chart is released without it.
	uninstallTries = 3
	// firstWait and lastWait are the limits of the pause after a failure. It doubles each time.
	firstWait = 5 * time.Second
	lastWait  = 5 * time.Minute

	// uninstallKey is the Key of Tries to uninstall, which do not depend on the chart's fields.
	uninstallKey = "uninstall"
	// ofCheck is appended to the Key of Tries to check the objects of a deployed release.
	ofCheck = " check"
)

// Tries are the earlier failures. They apply only to one Key.
type Tries struct {
	Key     string
	Count   int
	Next    time.Time // when it may be tried again
	Reason  string
	Message string
	// Final says that there is no further try. FailedRelease is the release at that time.
	Final         bool
	FailedRelease Release
}

// AfterFailure returns the tries after one more failure.
func AfterFailure(t Tries, key string, backOffLimit int, r *helmjob.Result, release Release, now time.Time, first time.Duration) Tries {
	if t.Key != key {
		t = Tries{}
	}
	next := Tries{
		Key: key, Count: t.Count + 1, Reason: string(r.Reason), Message: truncate.Text(r.Message, maxMessage), FailedRelease: release,
	}
	wait := lastWait
	if shift := next.Count - 1; shift < 10 {
		wait = min(first<<shift, lastWait)
	}
	next.Next = now.Add(wait)
	switch {
	case key == uninstallKey:
	case !r.TryAgain:
		next.Final = true
	case next.Count > backOffLimit:
		next.Final = true
		next.Message = truncate.Text(fmt.Sprintf("Given up after %s. %s", triesText(next.Count), r.Message), maxMessage)
	}
	return next
}

func triesText(n int) string {
	if n == 1 {
		return "one try"
	}
	return fmt.Sprintf("%d tries", n)
}

// backOff returns how often a failed operation is tried again.
func backOff(c *kinds.HelmChart) int {
	if c.Spec.BackOffLimit == nil {
		return defaultBackOff
	}
	return int(max(0, *c.Spec.BackOffLimit))
}

func timesText(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
