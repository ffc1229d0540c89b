// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// A status may give each load balancer address to some ports of its Service only. Upstream's trackers, which both back ends have, know one list of addresses
// for all ports of a Service. So a port with other addresses than most is handed to the back ends as a part: a Service with that port alone, and with the
// Service's endpoints of that port (detour). A port is in the Service or in its own part, never in another one.

// partName is the name of a part. No Service can have it, and no label's value, so no EndpointSlice of a user's is a part's.
func partName(service, port string) string { return service + "/" + port }

// partOf takes the name of a part apart; ok is false where it is a Service's.
func partOf(s *corev1.Service) (service types.NamespacedName, port string, ok bool) {
	name, port, ok := strings.Cut(s.Name, "/")
	return types.NamespacedName{Namespace: s.Namespace, Name: name}, port, ok
}

// inParts is a Service as the back ends hear of it: first itself, with the ports that have most of its load balancer addresses, then its parts.
func inParts(svc *corev1.Service) []*corev1.Service {
	served := addressesOfPorts(svc)
	if served == nil {
		return []*corev1.Service{svc}
	}
	most := slices.MaxFunc(served, func(a, b []int) int { return len(a) - len(b) })
	with := func(addresses []int, ports ...corev1.ServicePort) *corev1.Service {
		out := *svc // what it points to is shared: with very many ports a deep copy for each would be much
		out.Spec.Ports, out.Status.LoadBalancer.Ingress = ports, nil
		for _, i := range addresses {
			out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, svc.Status.LoadBalancer.Ingress[i])
		}
		return &out
	}
	out := []*corev1.Service{with(most)}
	for i, p := range svc.Spec.Ports {
		if slices.Equal(served[i], most) {
			out[0].Spec.Ports = append(out[0].Spec.Ports, p)
			continue
		}
		part := with(served[i], p)
		part.Name = partName(svc.Name, p.Name)
		if part.Spec.HealthCheckNodePort = 0; part.Spec.Type == corev1.ServiceTypeLoadBalancer {
			part.Spec.Type = corev1.ServiceTypeNodePort // the health check node port stays the Service's, and a load balancer has to have one
		}
		out = append(out, part)
	}
	return out
}

// addressesOfPorts says at which of its status' addresses, by index, each port of a Service is served; nil: all of them at all.
func addressesOfPorts(svc *corev1.Service) [][]int {
	out, all := make([][]int, len(svc.Spec.Ports)), true
	for i, in := range svc.Status.LoadBalancer.Ingress {
		given := portsAt(in)
		for j, p := range svc.Spec.Ports {
			if given == nil || given[lbports.Of(p.Protocol, p.Port)] {
				out[j] = append(out[j], i)
			} else {
				all = false
			}
		}
	}
	if all {
		return nil
	}
	return out
}

// portsAt are the ports that a status gives at an address; nil: those of the spec, whichever they are. So it is where no ports are listed: an address of a
// pool, one of another load balancer or of a version of ours that did not list them. Where there are ports, "every port defined in the service should have an
// entry", says the API, and one with an error is not given.
func portsAt(in corev1.LoadBalancerIngress) map[lbports.Port]bool {
	if len(in.Ports) == 0 || in.IP == "" || !proxyutil.IsVIPMode(in) {
		return nil
	}
	out := map[lbports.Port]bool{}
	for _, p := range in.Ports {
		if p.Error == nil {
			out[lbports.Of(p.Protocol, p.Port)] = true
		}
	}
	return out
}

// tell tells the back end what has become of a Service and its parts, either of which may be empty. A port that moves is told of where it comes to before it
// is where it leaves, and its endpoints are told of before: no sync in between finds it nowhere, which would end its connections.
func (p *Proxy) tell(was, is []*corev1.Service) {
	before := map[string]*corev1.Service{}
	for _, s := range was {
		before[s.Name] = s
	}
	for _, s := range slices.Backward(is) { // the Service comes after its parts
		if service, port, ok := partOf(s); ok {
			p.detour.separate(service, port)
		}
		if old := before[s.Name]; old != nil {
			delete(before, s.Name)
			p.backend.OnServiceUpdate(old, s)
		} else {
			p.backend.OnServiceAdd(s)
		}
	}
	for _, s := range before {
		p.backend.OnServiceDelete(s)
		if service, port, ok := partOf(s); ok {
			p.detour.rejoin(service, port)
		}
	}
}
