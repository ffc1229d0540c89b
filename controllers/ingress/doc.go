// SPDX-License-Identifier: Apache-2.0

// Package ingress does for Ingresses what one server of the cluster does for all: it keeps the Service at whose
// addresses the nodes' proxies are reached, names the nodes that serve in EndpointSlices, writes these addresses into
// the status of Ingresses, and says as events what is wrong with them.
//
// It runs with leadership, as one of a term's parts, and uses informers that the term has anyway. What it writes is a
// pure function of what the cluster holds (plan.go); the controller writes the differences. It owns the Service
// kube-system/ingress with its EndpointSlices, and Ingresses' status as far as they are of our classes. It never reads
// a request and sends no node anything: that is server/ingress.
package ingress
