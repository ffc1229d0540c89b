// SPDX-License-Identifier: Apache-2.0

// Package loadbalancer holds what the load balancer's controller and the nodes share: pools of addresses, the record of
// the nodes that announce each address, and the ports of a Service at nodes' addresses.
package loadbalancer
