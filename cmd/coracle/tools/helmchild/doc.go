// SPDX-License-Identifier: Apache-2.0

// Package helmchild does one operation on one release of a Helm chart and reports the result. It runs as the child
// process of the controller of Helm charts. The protocol between the two is in controllers/helmcharts/helmjob, so the
// controller does not import Helm's packages. It finds the chart (chart.go, repository.go, registry.go) and merges the
// values (values.go). It reads the state in which an earlier child process may have left the release, and then calls
// Helm's own actions (apply.go, remove.go).
//
// It stores nothing of its own: a release's state is in the Secrets that every helm reads. It reads no settings,
// plugins, caches or credentials of the machine's users.
//
// Its goroutines: one that ends the process when its parent ends.
package helmchild
