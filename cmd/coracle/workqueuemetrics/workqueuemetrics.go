// SPDX-License-Identifier: Apache-2.0

// Package workqueuemetrics prevents client-go's work queues from waking up twice a second each. A queue with metrics
// has a goroutine that does so for one gauge (the seconds of unfinished work). A process that holds a whole cluster has
// some ninety queues, and this was a quarter of the idle CPU time of API server, controllers and scheduler. The price
// is the loss of the workqueue_* metrics.
package workqueuemetrics

import (
	_ "unsafe" // for go:linkname

	"k8s.io/client-go/util/workqueue"
)

// provider is upstream's variable. Its setter works for the first caller only, which is component-base when it is
// initialized. A queue has no such goroutine only if the variable still holds its first value, whose type is not
// exported. A test fails when any of that changes.
//
//go:linkname provider k8s.io/client-go/util/workqueue.globalMetricsProvider
var provider workqueue.MetricsProvider

// upstreamProvider is the first value of provider. Go initializes packages that are ready in the order of their import
// paths, so this package is initialized before k8s.io/component-base.
var upstreamProvider = provider

// Disable makes queues that are made after the call have no metrics. Call it before there are any queues: the variable
// has no lock.
func Disable() { provider = upstreamProvider }
