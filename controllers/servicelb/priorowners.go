// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// KeptCondition is in the status of a Service that was served at a node's address and is not at present, while the node
// is not ready or has no endpoint of it. It lists the ports that no other Service gets there meanwhile. It is in the
// status, as the ports of the addresses are, because users cannot write the status.
const KeptCondition = loadbalancer.Kept

// maxKept limits the listed addresses, so that a status stays within the API's limit.
const maxKept = 512

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
		for _, p := range held(svc) {
			// two have the same one only after an upgrade
			if _, taken := out[p]; !taken && nodes[p.address] && !s.ofNodePorts(svc, p.port) {
				out[p] = key(svc)
			}
		}
	}
	return out
}

// statusPorts returns the address ports in a Service's status.
func statusPorts(svc *corev1.Service) []addressPort {
	var out []addressPort
	for _, in := range svc.Status.LoadBalancer.Ingress {
		for _, a := range parseAll([]string{in.IP}) {
			for _, p := range in.Ports {
				out = append(out, addressPort{a, loadbalancer.PortOf(p.Protocol, p.Port)})
			}
		}
	}
	if c := meta.FindStatusCondition(svc.Status.Conditions, KeptCondition); c != nil {
		out = append(out, parseAddressPorts(c.Message)...)
	}
	return out
}

// held returns the address ports in the status without those that the Service has dropped. A status of an earlier
// version has no ports: at its addresses the Service holds all its ports.
func held(svc *corev1.Service) []addressPort {
	have, want := portsOf(svc), requestedAddresses(svc)
	all := statusPorts(svc)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		for _, a := range parseAll([]string{in.IP}) {
			for _, p := range have {
				if len(in.Ports) == 0 {
					all = append(all, addressPort{a, p})
				}
			}
		}
	}
	asked := map[Port]bool{}
	for _, p := range have {
		asked[p] = true
	}
	return slices.DeleteFunc(all, func(p addressPort) bool {
		return !asked[p.port] || !hasFamily(svc, p.address) || len(want) > 0 && !slices.Contains(want, p.address)
	})
}

func portsOf(svc *corev1.Service) []Port {
	var out []Port
	for _, p := range svc.Spec.Ports {
		out = append(out, loadbalancer.PortOf(p.Protocol, p.Port))
	}
	return out
}

// all reports whether a Service holds each of its ports at some address. Such a Service comes before the others for an
// address port that no Service has yet, as on a new node.
func (c priorOwners) all(svc *corev1.Service) bool {
	somewhere := map[Port]bool{}
	for _, p := range held(svc) {
		somewhere[p.port] = somewhere[p.port] || c[p] == key(svc)
	}
	return !slices.ContainsFunc(portsOf(svc), func(p Port) bool { return !somewhere[p] })
}

// order returns the order of allocation: first the Services that hold all their ports, then the others, each by age.
func (c priorOwners) order(services []*corev1.Service) []*corev1.Service {
	first, rest := []*corev1.Service{}, []*corev1.Service{}
	for _, svc := range byAge(services) {
		if c.all(svc) {
			first = append(first, svc)
		} else {
			rest = append(rest, svc)
		}
	}
	return append(first, rest...)
}

// kept returns the address ports that a Service owns and is not served at.
func (c priorOwners) kept(svc *corev1.Service, served []netip.Addr) []addressPort {
	var out []addressPort
	known := map[addressPort]bool{}
	for _, p := range held(svc) {
		if c[p] == key(svc) && !slices.Contains(served, p.address) && !known[p] {
			known[p], out = true, append(out, p)
		}
	}
	return out
}

// ofPorts returns, by port, the Services that have it at some node's address.
func (c priorOwners) ofPorts() map[Port][]types.NamespacedName {
	out := map[Port][]types.NamespacedName{}
	for p, who := range c {
		if !slices.Contains(out[p.port], who) {
			out[p.port] = append(out[p.port], who)
		}
	}
	for _, all := range out {
		slices.SortFunc(all, compareNames)
	}
	return out
}

func compareNames(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) }

// addressPortsText lists address ports as "443/TCP,80/TCP at 10.0.0.1,10.0.0.2; 443/TCP at 10.0.0.3".
func addressPortsText(places []addressPort) string {
	byAddress := map[netip.Addr][]string{}
	for _, p := range places {
		byAddress[p.address] = append(byAddress[p.address], p.port.String())
	}
	byPorts := map[string][]netip.Addr{}
	for a, ports := range byAddress {
		slices.Sort(ports)
		text := strings.Join(ports, ",")
		byPorts[text] = append(byPorts[text], a)
	}
	var groups []string
	left := maxKept
	for _, ports := range slices.Sorted(maps.Keys(byPorts)) {
		at := byPorts[ports]
		slices.SortFunc(at, netip.Addr.Compare)
		var words []string
		for _, a := range at[:min(len(at), left)] {
			words = append(words, a.String())
		}
		if left -= len(words); len(words) > 0 {
			groups = append(groups, ports+" at "+strings.Join(words, ","))
		}
	}
	return strings.Join(groups, "; ")
}

// parseAddressPorts reads what addressPortsText wrote.
func parseAddressPorts(text string) []addressPort {
	var out []addressPort
	for group := range strings.SplitSeq(text, "; ") {
		ports, at, _ := strings.Cut(group, " at ")
		for _, a := range parseAll(strings.Split(at, ",")) {
			for word := range strings.SplitSeq(ports, ",") {
				number, protocol, _ := strings.Cut(word, "/")
				if n, err := strconv.ParseUint(number, 10, 16); err == nil {
					out = append(out, addressPort{a, loadbalancer.PortOf(corev1.Protocol(protocol), int32(n))})
				}
			}
		}
	}
	return out
}
