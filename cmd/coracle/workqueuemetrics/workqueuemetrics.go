// SPDX-License-Identifier: Apache-2.0

// Package workqueuemetrics keeps client-go's work queues from waking up twice a second each. With metrics a queue has a
// goroutine that does so for one gauge (the seconds of unfinished work); a process that holds a whole cluster has some
// ninety queues, and that was a quarter of the API server's, the controllers' and the scheduler's idle CPU time. The
// price is the workqueue_* metrics.
package workqueuemetrics

import (
	_ "unsafe" // for go:linkname

	"k8s.io/client-go/util/workqueue"
)

// provider is upstream's variable. It has a setter, which only the first caller reaches (component-base, when it is
// initialized), and a queue does without the goroutine only if the variable still holds its first value, whose type is
// not exported. A test fails when any of that changes.
//
//go:linkname provider k8s.io/client-go/util/workqueue.globalMetricsProvider
var provider workqueue.MetricsProvider

// none is that first value. Go initializes packages that are ready in the order of their paths, so this one comes
// before k8s.io/component-base.
var none = provider

// Disable makes queues that are made from now on have no metrics. Call it before there are any: the variable has no
// lock.
func Disable() { provider = none }
