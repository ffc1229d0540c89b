// SPDX-License-Identifier: Apache-2.0

// Package helmcharts keeps Helm charts installed that are objects of the API (HelmChart, HelmChartConfig). It runs on
// the leader.
//
// A pure function, [Decide], decides about each chart from the known state. Helm itself runs in a child process for
// each operation (controllers/helmcharts/helmjob), at most two at a time. An idle server has no such process. A child
// has access to the API only through this process: over a listener of its own, with the transport of the term of
// leadership. When the term or this process ends, that access ends, and the store refuses further writes of the child.
//
// The package owns the status and one finalizer of HelmCharts, and the definitions of both kinds. It never reads or
// writes the objects of a release.
//
// Its goroutines: one, asleep until a chart changes, and every 15 s where charts are files; watches of charts and of
// what they refer to; two child processes at most.
package helmcharts
