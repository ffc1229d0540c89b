// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// addressPort is a port at an address. The zero address is for all addresses of all nodes.
type addressPort = loadbalancer.AddressPort

// owner is the Service or the other program that has an address port.
type owner struct {
	// service is the Service that owns it. The zero name is for another program.
	service types.NamespacedName
	// pod is the pod that has it as a host port. It is no conflict for a Service that selects this pod.
	pod *corev1.Pod
	// description names the owner in a message.
	description string
}

// ports holds all owners of each address port.
type ports map[addressPort][]owner

func (p ports) reserve(at addressPort, by owner) { p[at] = append(p[at], by) }

// otherOwner returns an owner of the address port other than the Service itself.
func (p ports) otherOwner(at addressPort, svc *corev1.Service) (owner, bool) {
	for _, at := range []addressPort{at, {Port: at.Port}} {
		for _, o := range p[at] {
			if o.service == serviceKey(svc) || o.pod != nil && leadsTo(svc, o.pod) {
				continue
			}
			return o, true
		}
	}
	return owner{}, false
}

func leadsTo(svc *corev1.Service, pod *corev1.Pod) bool {
	return pod.Namespace == svc.Namespace && len(svc.Spec.Selector) > 0 &&
		labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(pod.Labels))
}

// reserved returns the address ports that no load balancer gets: the cluster's own, node ports, those of health checks,
// and host ports.
func (s *State) reserved(refused map[types.NamespacedName][]refusal, holders map[Port][]types.NamespacedName) ports {
	out := ports{}
	for p, what := range s.Reserved {
		out.reserve(addressPort{Port: p}, owner{description: what})
	}
	for _, svc := range s.Services {
		for _, p := range svc.Spec.Ports {
			port := loadbalancer.PortOf(p.Protocol, p.NodePort)
			if p.NodePort != 0 && !slices.ContainsFunc(refused[serviceKey(svc)], func(r refusal) bool { return r.port == port }) {
				out.reserve(addressPort{Port: port},
					owner{service: serviceKey(svc), description: "the node port of the Service " + serviceKey(svc).String()})
			}
		}
	}
	s.reserveHealthChecks(out, holders)
	byName := s.trusted()
	for _, pod := range s.Pods {
		if !holdsPorts(pod) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for p := range hostPorts(pod) {
			at := byName[pod.Spec.NodeName]
			if ip, err := netip.ParseAddr(p.HostIP); err == nil && !ip.IsUnspecified() {
				// an address of another node is not the pod's
				at = slices.DeleteFunc(slices.Clone(at), func(a netip.Addr) bool { return a != ip.Unmap() })
			}
			for _, a := range at {
				out.reserve(addressPort{Address: a, Port: loadbalancer.PortOf(p.Protocol, p.HostPort)},
					owner{pod: pod, description: "the host port of the pod " + pod.Namespace + "/" + pod.Name})
			}
		}
	}
	return out
}

// reserveHealthChecks reserves the ports at which nodes report whether they have endpoints of a Service. It leaves out
// those that another Service had before.
func (s *State) reserveHealthChecks(out ports, holders map[Port][]types.NamespacedName) {
	for _, svc := range s.Services {
		port := loadbalancer.PortOf(corev1.ProtocolTCP, svc.Spec.HealthCheckNodePort)
		if port.Number != 0 && !slices.ContainsFunc(holders[port], func(has types.NamespacedName) bool { return has != serviceKey(svc) }) {
			out.reserve(addressPort{Port: port},
				owner{service: serviceKey(svc), description: "the health checks of the Service " + serviceKey(svc).String()})
		}
	}
}

func protocolOf(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

// holdsPorts reports whether a pod has ports at its node's addresses.
func holdsPorts(pod *corev1.Pod) bool {
	for range hostPorts(pod) {
		return pod.Spec.NodeName != ""
	}
	return false
}

func hostPorts(pod *corev1.Pod) func(yield func(corev1.ContainerPort) bool) {
	return func(yield func(corev1.ContainerPort) bool) {
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, p := range c.Ports {
				if p.HostPort != 0 && !yield(p) {
					return
				}
			}
		}
	}
}

// allocate allocates its ports at all of the addresses to a Service. If one has another owner, it allocates none and
// returns the reason.
func (p ports) allocate(svc *corev1.Service, at []netip.Addr) (why string) {
	for _, a := range at {
		for _, sp := range svc.Spec.Ports {
			port := loadbalancer.PortOf(sp.Protocol, sp.Port)
			if o, reserved := p.otherOwner(addressPort{Address: a, Port: port}, svc); reserved {
				return fmt.Sprintf("port %s at %s: %s has it", port, a, o.description)
			}
		}
	}
	p.assign(svc, at)
	return ""
}

func (p ports) assign(svc *corev1.Service, at []netip.Addr) {
	for _, a := range at {
		for _, sp := range svc.Spec.Ports {
			p.reserve(addressPort{Address: a, Port: loadbalancer.PortOf(sp.Protocol, sp.Port)},
				owner{service: serviceKey(svc), description: "the Service " + serviceKey(svc).String()})
		}
	}
}
