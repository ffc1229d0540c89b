// SPDX-License-Identifier: Apache-2.0

// Package gateway does the work for the Gateway API that one server does for the cluster. It defines the kinds and
// makes the class. It syncs the Service of each Gateway with its EndpointSlices, allocates a node port to each port of
// a Gateway, and writes the status of the objects.
//
// It runs on the leader, as a part of a term. ingress/gateway computes the desired objects, and the controller writes
// the differences. While a cluster has no Gateway and no route, it requests the definitions and the class once in a
// term. It watches nothing and writes nothing then. It owns the definitions and the class with its label, Services with
// the owner reference of a Gateway, and the ConfigMap kube-system/gateway-ports.
package gateway
