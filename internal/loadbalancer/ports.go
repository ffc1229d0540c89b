// SPDX-License-Identifier: Apache-2.0

// This file determines which ports a Service of type LoadBalancer has at nodes' addresses. The load balancer writes
// these ports into the Service's status (controllers/servicelb), which users cannot write. Every node's Service proxy
// reads them, and opens no node port of another Service there.

package loadbalancer

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
)

const (
	// Condition is the type of a condition in the status of each Service that the load balancer serves.
	Condition = "coracle.dev/LoadBalancer"
	// Kept is the type of a condition in the status of a Service that was served at a node's address and is not at
	// present, while the node is not ready or has no endpoint of it. Its message lists the ports that no other Service
	// gets there meanwhile (WriteKept). It is in the status, as the ports of the addresses are, because users cannot
	// write the status.
	Kept = "coracle.dev/LoadBalancerKept"
)

// Port is a port number with its protocol.
type Port struct {
	Protocol corev1.Protocol
	Number   int32
}

// PortOf returns the Port for a port of a Service's spec or status. There, an empty protocol means TCP.
func PortOf(p corev1.Protocol, number int32) Port {
	p = cmp.Or(p, corev1.ProtocolTCP)
	return Port{p, number}
}

// Held returns the ports that a Service has at nodes' addresses by its status. A port that was removed from the spec
// belongs to the Service until the load balancer has removed it from the status. Otherwise a Service that adds the port
// again would get it before those that got it meanwhile.
func Held(svc *corev1.Service) []Port {
	if svc == nil || meta.FindStatusCondition(svc.Status.Conditions, Condition) == nil {
		return nil
	}
	var out []Port
	known := map[Port]bool{} // a Service may have ten thousand
	add := func(p Port) {
		if !known[p] {
			known[p], out = true, append(out, p)
		}
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		for _, p := range in.Ports {
			add(PortOf(p.Protocol, p.Port))
		}
	}
	if c := meta.FindStatusCondition(svc.Status.Conditions, Kept); c != nil {
		for p := range ReadKept(c.Message) {
			add(p.Port)
		}
	}
	return out
}

// String returns NUMBER/PROTOCOL.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }
