// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// TestMapWatchEndsWithoutReader: a goroutine whose event has no reader ends with the watch, which the end of the
// bubble waits for.
func TestMapWatchEndsWithoutReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := watch.NewFake()
		w := mapWatch(events, func(e watch.Event) watch.Event { return e })
		events.Add(&corev1.Pod{})
		synctest.Wait() // the event waits for a reader
		w.Stop()
		w.Stop()
		synctest.Wait()
		if _, ok := <-w.ResultChan(); ok {
			t.Error("an event after the stop")
		}
	})
}
