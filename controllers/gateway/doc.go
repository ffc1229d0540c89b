// SPDX-License-Identifier: Apache-2.0

// Package gateway does for the Gateway API what one server of the cluster does for all: it defines the kinds, makes the
// class, keeps the Service of each Gateway with its EndpointSlices, gives each port of a Gateway a port of nodes'
// addresses, and writes the status of the objects.
//
// It runs with leadership, as one of a term's parts. What it writes is what ingress/gateway says; the controller writes
// the differences. While a cluster has no Gateway and no route, it asks for the definitions and the class once in a
// term, watches nothing and writes nothing. It owns the definitions and the class with its label, Services with the
// owner reference of a Gateway, and the ConfigMap kube-system/gateway-ports.
package gateway
