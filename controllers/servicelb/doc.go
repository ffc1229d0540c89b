// SPDX-License-Identifier: Apache-2.0

// Package servicelb gives Services of type LoadBalancer their addresses, where no cloud does: those of the nodes.
//
// It runs with leadership, as one of a term's parts. What a Service gets is a pure function of what the cluster holds
// (Plan); the controller writes the differences into the Services' status. It owns the addresses and the condition
// Condition in the status of those Services, and says by that condition which are its own. It opens no port itself:
// every node's Service proxy does, for the addresses in the status. It never touches a Service whose class is another
// load balancer's.
package servicelb
