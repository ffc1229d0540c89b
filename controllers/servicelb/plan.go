// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Reasons of the condition.
const (
	// ReasonServed is the one of a Service that has all it asks for.
	ReasonServed = "Served"
	// ReasonPortInUse says that another Service or program has one of its ports, at some or all addresses.
	ReasonPortInUse = "PortInUse"
	// ReasonNodePortRange says that one of its ports is of the node ports' range, and not its own node port.
	ReasonNodePortRange = "NodePortRange"
	// ReasonNoNode says that no node can serve it.
	ReasonNoNode = "NoNode"
)

// Allocation is what a Service gets.
type Allocation struct {
	// Ours says that the Service is served here; else it has nothing from here.
	Ours bool
	// Pool says that the addresses are of the pool, and have to be announced.
	Pool      bool
	Addresses []netip.Addr
	// kept are places at nodes' addresses where it is not served at present, and that no other Service gets.
	kept []addressPort
	// released is what its status says that it has, and what it has given up.
	released []addressPort
	// refused says of the Service's node ports which ones are not opened, and why; empty if all are. It may have some
	// without being served here.
	refused string
	Reason  string
	// Message is for people: what is missing, and what to do about it.
	Message string
}

// Plan says what each Service gets. It depends on nothing but the state.
func Plan(s *State) map[types.NamespacedName]Allocation {
	out := map[types.NamespacedName]Allocation{}
	nodes, endpoints := s.servingNodes(), withEndpoints(s.Slices)
	services, addresses := byAge(s.Services), s.newLedger()
	for _, svc := range services {
		if s.serves(svc) && addresses.fromPool(svc) {
			addresses.keep(svc)
		}
	}
	claims := s.priorOwners(addresses)
	released := addresses.releases(services, claims)
	had := claims.with(released)
	refused := s.refused(had)
	taken := s.reserved(refused, had.ofPorts())
	for at, who := range had {
		taken.reserve(at, owner{service: who, what: "the Service " + who.String()})
	}
	for _, svc := range claims.order(services) {
		switch {
		case !s.serves(svc):
		case addresses.fromPool(svc):
			v := addresses.allocate(svc)
			v.inUse(s.InUse)
			out[key(svc)] = v
		default:
			v := Allocation{Ours: true, Reason: ReasonNodePortRange, Message: s.inNodePorts(svc)}
			if v.Message == "" {
				v = taken.atNodes(svc, nodes, endpoints[key(svc)])
			}
			v.kept = claims.kept(svc, v.Addresses)
			out[key(svc)] = v
		}
	}
	for who, ports := range refused {
		v := out[who]
		v.refused = refusals(ports)
		out[who] = v
	}
	for who, places := range released {
		v := out[who]
		v.released = places
		out[who] = v
	}
	return out
}

// atNodes gives a Service the addresses of the nodes at which all its ports are free. endpoints are the nodes that have
// some of it.
func (p ports) atNodes(svc *corev1.Service, nodes []node, endpoints map[string]bool) Allocation {
	v := Allocation{Ours: true}
	var conflicts []string
	wanted := requestedAddresses(svc)
	for _, n := range nodes {
		if local(svc) && !endpoints[n.name] {
			continue
		}
		at := ofFamilies(n.addresses, svc)
		if len(wanted) > 0 {
			at = slices.DeleteFunc(at, func(a netip.Addr) bool { return !slices.Contains(wanted, a) })
		}
		if len(at) == 0 {
			continue
		}
		if why := p.allocate(svc, at); why != "" {
			conflicts = append(conflicts, why)
			continue
		}
		v.Addresses = append(v.Addresses, at...)
	}
	switch {
	case len(conflicts) > 0:
		v.Reason, v.Message = ReasonPortInUse, conflictText(conflicts, len(v.Addresses) > 0)
	case len(v.Addresses) > 0:
		v.Reason, v.Message = ReasonServed, "it has the addresses of nodes"
	case len(wanted) > 0:
		v.Reason, v.Message = ReasonNoNode, fmt.Sprintf("it asks for %v, which no node has that can serve it", wanted)
	case len(nodes) > 0 && local(svc):
		v.Reason, v.Message = ReasonNoNode, "externalTrafficPolicy is Local, and no node that can serve has a ready endpoint of it"
	default:
		v.Reason, v.Message = ReasonNoNode, "no node has an address for it: there is none of its address families, or labels exclude all"
	}
	return v
}

// shownConflicts keeps a message readable.
const shownConflicts = 3

func conflictText(conflicts []string, some bool) string {
	text := strings.Join(conflicts[:min(len(conflicts), shownConflicts)], "; ")
	if more := len(conflicts) - shownConflicts; more > 0 {
		text += fmt.Sprintf("; and so at %d more nodes", more)
	}
	if some {
		return text + ". It is served at the other nodes"
	}
	return text + ". Give it another port, or take the port from who has it"
}
