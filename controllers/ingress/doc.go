// SPDX-License-Identifier: Apache-2.0

// Package ingress does the work for Ingresses that one server does for the cluster. It syncs the Service at whose
// addresses clients reach the nodes' proxies, and the EndpointSlices with the nodes that serve. It writes these
// addresses into the status of Ingresses, and records events about their problems.
//
// It runs on the leader, as a part of a term, and uses the term's informers. What it writes is a pure function of the
// cluster's objects (plan.go), and the controller writes the differences. It owns the Service kube-system/ingress with
// its EndpointSlices, and the status of Ingresses of served classes. It reads no requests and sends nothing to nodes:
// server/ingress does.
package ingress
