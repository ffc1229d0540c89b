// SPDX-License-Identifier: Apache-2.0

// Package helmjob does one thing with one release of a Helm chart and says what became of it. It is the child process
// of the controller of charts: what the two say to one another is in controllers/helmcharts/helmjob, which is why this
// package is the only one that knows Helm's. It finds the chart (chart.go, repository.go, registry.go), merges the
// values (values.go), reads the state in which an earlier child may have left the release, and then calls Helm's own
// actions (apply.go, remove.go).
//
// It keeps nothing: a release's state is in the Secrets that every helm reads. It reads no settings, plugins, caches or
// credentials of the machine's users.
package helmjob
