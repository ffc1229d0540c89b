// SPDX-License-Identifier: Apache-2.0

package timers

import (
	"sync"
	"testing"
	"testing/synctest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestValueWakesAllWaiters: each goroutine that waits is woken by a change, and one that follows a value gets its last
// state.
func TestValueWakesAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var v Value[int]
		var followers sync.WaitGroup
		for range 10 {
			followers.Go(func() {
				for now, changed := v.Get(); now < 100; now, changed = v.Get() {
					<-changed
				}
			})
		}
		for i := range 101 {
			if i%10 == 0 {
				synctest.Wait() // all are waiting
			}
			v.Set(i)
		}
		followers.Wait()
		now, changed := v.Get()
		testenv.Equal(t, now, 100, "the value is")
		select {
		case <-changed:
			t.Error("there was a change after the last")
		default:
		}
	})
}
