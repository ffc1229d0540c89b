// SPDX-License-Identifier: Apache-2.0

// Package metrics counts what a store does and gives the numbers to Prometheus. They have etcd's names where etcd has
// the same metric, so that its dashboards and alerts can be adapted. Others begin with coracle_store_.
// docs/operations/store.md explains each.
//
// It owns counters and histograms that cost a few atomic additions and never allocate. It also owns a Collector, which
// requests everything else from a Source when it is scraped. It knows nothing of the store, starts no goroutine, and
// registers nothing by itself.
package metrics
