// SPDX-License-Identifier: Apache-2.0

// Package servicelb allocates addresses to Services of type LoadBalancer where no cloud does: those of nodes or of
// pools.
//
// It runs on the leader, as a part of a term. What a Service gets is a pure function of the cluster's objects (Plan),
// and the controller writes the differences into the Services' status. It owns the addresses and the condition
// Condition in the status of those Services. The condition marks the Services that it serves. It opens no port itself:
// each node's Service proxy does, for the addresses in the status. It does not touch Services whose class is another
// load balancer's.
//
// Its goroutines: the controller, asleep; the watch of AddressPools; every 250 ms where addresses of a pool are in use.
package servicelb
