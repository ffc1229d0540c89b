// SPDX-License-Identifier: Apache-2.0

// The test is outside the package: inside, its import of the metrics would be the package's, and come first.
package quietqueues_test

import (
	"bytes"
	"fmt"
	"runtime/pprof"
	"strings"
	"testing"

	"k8s.io/client-go/util/workqueue"
	_ "k8s.io/component-base/metrics/prometheus/workqueue" // installs the metrics

	"github.com/coracle-k8s/coracle/internal/quietqueues"
)

func loops(t *testing.T) int {
	t.Helper()
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 2); err != nil {
		t.Fatal(err)
	}
	return strings.Count(b.String(), ").updateUnfinishedWorkLoop(")
}

func TestOff(t *testing.T) {
	if got := fmt.Sprintf("%T", quietqueues.None); got != "workqueue.noopMetricsProvider" {
		t.Fatalf("the first value is a %s: the order of initialization has changed, or the variable has moved", got)
	}
	queue := func() func() {
		q := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[string]{Name: "boats"})
		return q.ShutDown
	}
	end := queue()
	if n := loops(t); n != 1 {
		t.Errorf("a queue with metrics has %d loops; if it has none any more, this package is of no use", n)
	}
	end()
	quietqueues.Off()
	before := loops(t) // the first queue's may be about to end
	defer queue()()
	if n := loops(t); n > before {
		t.Errorf("a queue without metrics has %d loops", n-before)
	}
}
