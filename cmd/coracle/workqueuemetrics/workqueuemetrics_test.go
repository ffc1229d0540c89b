// SPDX-License-Identifier: Apache-2.0

// The test is outside the package: inside, its import of the metrics would be the package's, and come first.
package workqueuemetrics_test

import (
	"fmt"
	"runtime"
	"testing"

	"k8s.io/client-go/util/workqueue"
	_ "k8s.io/component-base/metrics/prometheus/workqueue" // installs the metrics

	"github.com/coracle-k8s/coracle/cmd/coracle/workqueuemetrics"
)

// goroutines counts those that making a queue starts.
func goroutines() int {
	before := runtime.NumGoroutine()
	q := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[string]{Name: "boats"})
	defer q.ShutDown()
	return runtime.NumGoroutine() - before
}

func TestDisableEndsGoroutineOfEachQueue(t *testing.T) {
	defer workqueuemetrics.Keep()()
	if got := fmt.Sprintf("%T", workqueuemetrics.None); got != "workqueue.noopMetricsProvider" {
		t.Fatalf("the first value is a %s: the order of initialization has changed, or the variable has moved", got)
	}
	if n := goroutines(); n != 1 {
		t.Errorf("a queue with metrics starts %d goroutines; if none any more, this package is of no use", n)
	}
	for runtime.NumGoroutine() > 2 { // until that queue's has ended; the two are the test's
		runtime.Gosched()
	}
	workqueuemetrics.Disable()
	if n := goroutines(); n != 0 {
		t.Errorf("a queue without metrics starts %d goroutines", n)
	}
}
