// SPDX-License-Identifier: Apache-2.0

// Package helmcharts keeps Helm charts installed that are objects of the API (HelmChart, HelmChartConfig), where the
// leader is.
//
// What is to be done about a chart is decided by a pure function, [Decide], from what is known of it. Helm itself runs
// in a child process for each operation (controllers/helmcharts/helmjob), two at a time, and nothing of it is there at
// rest. A child reaches the API only through this process, over a listener of its own, by the transport of the term of
// leadership: with the term, or with this process, it has lost its way to the API, and the store refuses what it still
// writes.
//
// The package owns the status and one finalizer of HelmCharts, and the definitions of both kinds. It never reads or
// writes what a release consists of.
package helmcharts
