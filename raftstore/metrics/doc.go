// SPDX-License-Identifier: Apache-2.0

// Package metrics counts what a store does and gives the numbers to
// Prometheus, under etcd's names where etcd has the same thing, so that its
// dashboards and alerts can be adapted, and under coracle_store_ where it has
// not. docs/operations/store.md explains each.
//
// It owns counters and histograms that cost a few atomic additions and never
// allocate, and a Collector that asks a Source for everything else when it is
// scraped. It knows nothing of the store, starts no goroutine, and registers
// nothing by itself.
package metrics
