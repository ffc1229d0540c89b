// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// requestedPorts are the ports at nodes' addresses that Services have or request, as load balancers and as node ports.
type requestedPorts map[loadbalancer.Port]map[types.NamespacedName]bool

// update records the requested ports of a Service that was added, changed or deleted. It adds the Services that share
// one of these ports to touched.
func (w requestedPorts) update(key types.NamespacedName, was, is *corev1.Service, touched map[types.NamespacedName]bool) {
	before, now := requestedPortsOf(was), requestedPortsOf(is)
	if slices.Equal(before, now) && slices.Equal(loadbalancer.Held(was), loadbalancer.Held(is)) {
		return
	}
	for _, p := range before {
		maps.Copy(touched, w[p])
		if delete(w[p], key); len(w[p]) == 0 {
			delete(w, p)
		}
	}
	for _, p := range now {
		maps.Copy(touched, w[p])
		if w[p] == nil {
			w[p] = map[types.NamespacedName]bool{}
		}
		w[p][key] = true
	}
}

func requestedPortsOf(svc *corev1.Service) []loadbalancer.Port {
	out := loadbalancer.Held(svc)
	if svc == nil {
		return out
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, loadbalancer.PortOf(p.Protocol, p.NodePort))
		}
	}
	return out
}

// nodePort returns why a Service's node port is not opened, or "". A load balancer's Service that has the port at
// nodes' addresses keeps it: otherwise a user who may write Services in one namespace could get what is sent to another
// namespace's. The node port was requested later, since the load balancer gives no Service a port that is a node port
// already.
func (x *externals) nodePort(svc *corev1.Service, p corev1.ServicePort) (why string) {
	if slices.Contains(x.reserved.Ports, uint16(p.NodePort)) {
		return fmt.Sprintf("the node port %d is the cluster's own", p.NodePort)
	}
	if p.Protocol == corev1.ProtocolUDP && (p.NodePort == int32(x.reserved.Tunnel) || x.senders[int(p.NodePort)] > 0) {
		return fmt.Sprintf("the node port %d is where packets from other nodes come in by UDP", p.NodePort)
	}
	port, own := loadbalancer.PortOf(p.Protocol, p.NodePort), types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	var holders []string
	for key := range x.requestedPorts[port] {
		if key != own && slices.Contains(loadbalancer.Held(x.filtered[key].received), port) {
			holders = append(holders, key.String())
		}
	}
	if len(holders) == 0 {
		return ""
	}
	return fmt.Sprintf("the node port %d is a port of the load balancer's Service %s", p.NodePort, slices.Min(holders))
}
