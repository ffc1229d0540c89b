// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// A status may give each load balancer address to some ports of its Service only. Upstream's trackers, which both back ends have, know one list of addresses
// for all ports of a Service. So the ports with another list than the Service keeps are handed to the back ends as a part: a Service with these ports, that
// list, and the Service's endpoints of these ports (detour). There is one part for each list, so that what a change costs grows with the ports, however a status gives them.

// partName is the name of the part with these addresses, which it has as long as it exists. No Service can have it, and no label's value, so no EndpointSlice
// of a user's is a part's.
func partName(service string, at []corev1.LoadBalancerIngress) string {
	h := sha256.New() // of what is written once for each list; a user must not find two with one name
	for _, in := range at {
		fmt.Fprintf(h, "%q %q %q\n", in.IP, in.Hostname, ptr.Deref(in.IPMode, corev1.LoadBalancerIPModeVIP))
	}
	return service + "/" + hex.EncodeToString(h.Sum(nil)[:10])
}

// inParts is a Service as the back ends hear of it: first itself, with the ports that have most of its load balancer addresses, then its parts.
func inParts(svc *corev1.Service) []*corev1.Service {
	served := addressesOfPorts(svc)
	if served == nil {
		return []*corev1.Service{svc}
	}
	with := func(addresses []int) *corev1.Service {
		out := *svc // what it points to is shared: with very many ports a deep copy for each would be much
		out.Spec.Ports, out.Status.LoadBalancer.Ingress = nil, nil
		for _, i := range addresses {
			out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, svc.Status.LoadBalancer.Ingress[i])
		}
		return &out
	}
	own := with(slices.MaxFunc(served, func(a, b []int) int { return len(a) - len(b) }))
	out := []*corev1.Service{own}
	lists, names := map[string]*corev1.Service{}, map[string]*corev1.Service{partName(svc.Name, own.Status.LoadBalancer.Ingress): own}
	for i, p := range svc.Spec.Ports {
		list := fmt.Sprint(served[i])
		in := lists[list]
		if in == nil {
			part := with(served[i])
			part.Name = partName(svc.Name, part.Status.LoadBalancer.Ingress)
			if in = names[part.Name]; in == nil {
				if part.Spec.HealthCheckNodePort = 0; part.Spec.Type == corev1.ServiceTypeLoadBalancer {
					part.Spec.Type = corev1.ServiceTypeNodePort // the health check node port stays the Service's, and a load balancer has to have one
				}
				in, names[part.Name], out = part, part, append(out, part)
			}
			lists[list] = in
		}
		in.Spec.Ports = append(in.Spec.Ports, p)
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
// is where it leaves, and its endpoints are told of before: no sync in between finds it nowhere, which would end its connections. So parts take in what comes to
// them and keep what they had; then the Service changes, which may get other addresses; then the parts let go.
func (p *Proxy) tell(was, is []*corev1.Service) {
	before := map[string]*corev1.Service{}
	for _, s := range was {
		before[s.Name] = s
	}
	change := func(s *corev1.Service) {
		if old := before[s.Name]; old == nil {
			p.backend.OnServiceAdd(s)
		} else if old != s {
			p.backend.OnServiceUpdate(old, s)
		}
		before[s.Name] = s
	}
	if len(is) > 1 {
		p.detour.separate(is)
		stay := portsIn(is)
		for _, part := range is[1:] {
			change(keeping(part, before[part.Name], stay))
		}
	}
	for _, s := range is {
		change(s)
		delete(before, s.Name)
	}
	for _, s := range before {
		p.backend.OnServiceDelete(s)
	}
	if len(was) > 1 {
		p.detour.rejoin(was[0], is)
	}
}

// samePort is by what a port is the same one before and after a change.
type samePort struct {
	name             string
	protocol         corev1.Protocol
	number, nodePort int32
}

func identity(p corev1.ServicePort) samePort { return samePort{p.Name, p.Protocol, p.Port, p.NodePort} }

func portsIn(all []*corev1.Service) map[samePort]bool {
	out := map[samePort]bool{}
	for _, s := range all {
		for _, p := range s.Spec.Ports {
			out[identity(p)] = true
		}
	}
	return out
}

// keeping is a part with those ports, too, that it had and that move elsewhere. Its addresses are the same before and after, and a port that is not the same one
// any more does not stay at them: nothing is served where neither status gives it.
func keeping(part, old *corev1.Service, stay map[samePort]bool) *corev1.Service {
	if old == nil {
		return part
	}
	own := portsIn([]*corev1.Service{part})
	var moving []corev1.ServicePort
	for _, p := range old.Spec.Ports {
		if stay[identity(p)] && !own[identity(p)] {
			moving = append(moving, p)
		}
	}
	if moving == nil {
		return part
	}
	out := *part
	out.Spec.Ports = slices.Concat(part.Spec.Ports, moving)
	return &out
}
