// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// What the caches wait for once a second, each with a jitter of its own, comes at the same moments.
func TestBookmarkTimersFireAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		moments := map[time.Time]int{}
		for i := range 10 {
			timer := alignedClock{}.NewTimer(wait.Jitter(time.Second, 0.25))
			for range 5 {
				moments[<-timer.C()]++
				timer.Reset(wait.Jitter(time.Second, 0.25))
			}
			timer.Stop()
			time.Sleep(time.Duration(i) * 77 * time.Millisecond) // the fake time of synctest: the next timer begins at another moment
		}
		first := time.Time{}
		for m := range moments {
			if first.IsZero() {
				first = m
			}
			testenv.True(t, m.Sub(first)%time.Second == 0, "one fires at %v, another at %v", first, m)
		}
		start := time.Now()
		for _, other := range []time.Duration{10 * time.Millisecond, 3 * time.Second} {
			timer := alignedClock{}.NewTimer(other)
			if at := <-timer.C(); at.Sub(start) != other {
				t.Errorf("a timer of %v fires after %v", other, at.Sub(start))
			}
			start = time.Now()
		}
	})
}
