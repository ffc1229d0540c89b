// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// priorOwners has the Services that have owned an address port since an earlier plan. A Service keeps an address port
// until it is no load balancer, drops the port or requests other addresses, or until no node has the address.
type priorOwners map[addressPort]types.NamespacedName

func (s *State) priorOwners(l *ledger) priorOwners {
	nodes, out := map[netip.Addr]bool{}, priorOwners{}
	for _, all := range s.trusted() {
		for _, a := range all {
			nodes[a] = true
		}
	}
	for _, svc := range byAge(s.Services) {
		if !s.serves(svc) || l.fromPool(svc) {
			continue
		}
		for _, p := range heldAddressPorts(svc) {
			// two have the same one only after an upgrade
			if _, taken := out[p]; !taken && nodes[p.Address] && !s.ofNodePorts(svc, p.Port) {
				out[p] = serviceKey(svc)
			}
		}
	}
	return out
}

func statusPorts(svc *corev1.Service) []addressPort {
	var out []addressPort
	for _, in := range svc.Status.LoadBalancer.Ingress {
		for _, a := range parseAll([]string{in.IP}) {
			for _, p := range in.Ports {
				out = append(out, addressPort{Address: a, Port: loadbalancer.PortOf(p.Protocol, p.Port)})
			}
		}
	}
	if c := meta.FindStatusCondition(svc.Status.Conditions, loadbalancer.Kept); c != nil {
		out = slices.AppendSeq(out, loadbalancer.ReadKept(c.Message))
	}
	return out
}

// heldAddressPorts returns the address ports in the status without those that the Service has dropped. A status of an
// earlier version has no ports: at its addresses the Service holds all its ports.
func heldAddressPorts(svc *corev1.Service) []addressPort {
	have, want := portsOf(svc), requestedAddresses(svc)
	all := statusPorts(svc)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		for _, a := range parseAll([]string{in.IP}) {
			for _, p := range have {
				if len(in.Ports) == 0 {
					all = append(all, addressPort{Address: a, Port: p})
				}
			}
		}
	}
	asked := map[Port]bool{}
	for _, p := range have {
		asked[p] = true
	}
	return slices.DeleteFunc(all, func(p addressPort) bool {
		return !asked[p.Port] || !hasFamily(svc, p.Address) || len(want) > 0 && !slices.Contains(want, p.Address)
	})
}

func portsOf(svc *corev1.Service) []Port {
	return convert.Slice(svc.Spec.Ports, func(p corev1.ServicePort) Port { return loadbalancer.PortOf(p.Protocol, p.Port) })
}

// holdsAllPorts reports whether a Service holds each of its ports at some address. Such a Service comes before the
// others for an address port that no Service has yet, as on a new node.
func (c priorOwners) holdsAllPorts(svc *corev1.Service) bool {
	somewhere := map[Port]bool{}
	for _, p := range heldAddressPorts(svc) {
		somewhere[p.Port] = somewhere[p.Port] || c[p] == serviceKey(svc)
	}
	return !slices.ContainsFunc(portsOf(svc), func(p Port) bool { return !somewhere[p] })
}

// allocationOrder returns the order of allocation: first the Services that hold all their ports, then the others, each
// by age.
func (c priorOwners) allocationOrder(services []*corev1.Service) []*corev1.Service {
	first, others := []*corev1.Service{}, []*corev1.Service{}
	for _, svc := range byAge(services) {
		if c.holdsAllPorts(svc) {
			first = append(first, svc)
		} else {
			others = append(others, svc)
		}
	}
	return append(first, others...)
}

// heldPorts returns the address ports that a Service owns and is not served at.
func (c priorOwners) heldPorts(svc *corev1.Service, served []netip.Addr) []addressPort {
	var out []addressPort
	known := map[addressPort]bool{}
	for _, p := range heldAddressPorts(svc) {
		if c[p] == serviceKey(svc) && !slices.Contains(served, p.Address) && !known[p] {
			known[p], out = true, append(out, p)
		}
	}
	return out
}

// ofPorts returns, by port, the Services that have it at some node's address.
func (c priorOwners) ofPorts() map[Port][]types.NamespacedName {
	out := map[Port][]types.NamespacedName{}
	for p, who := range c {
		if !slices.Contains(out[p.Port], who) {
			out[p.Port] = append(out[p.Port], who)
		}
	}
	for _, all := range out {
		slices.SortFunc(all, compareNames)
	}
	return out
}

func compareNames(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }
