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

// Reasons of Condition.
const (
	// ReasonServed says that a Service has everything that it requests.
	ReasonServed = "Served"
	// ReasonPortInUse says that another Service or program uses one of the Service's ports, at some or all addresses.
	ReasonPortInUse = "PortInUse"
	// ReasonNodePortRange says that one of the Service's ports is in the range of node ports, and is not its own node
	// port.
	ReasonNodePortRange = "NodePortRange"
	// ReasonNoNode says that no node can serve the Service.
	ReasonNoNode = "NoNode"
)

// Allocation is the result of a plan for one Service.
type Allocation struct {
	// Ours says that coracle serves the Service. Other Services get no allocation.
	Ours bool
	// Pool says that the addresses are of a pool, and have to be announced.
	Pool      bool
	Addresses []netip.Addr
	// heldPorts are the ports at nodes' addresses where it is not served at present, and that no other Service gets.
	heldPorts []addressPort
	// released are the address ports that it still has by its status, and that are no longer allocated to it.
	released []addressPort
	// refused is a message about the Service's node ports that are not opened; "" if all are open. A Service that
	// coracle does not serve may have such ports, too.
	refused string
	Reason  string
	// Message is text for users: what is missing, and what to do about it.
	Message string
}

// Plan returns the allocation of each Service. It depends only on the state.
func Plan(s *State) map[types.NamespacedName]Allocation {
	out := map[types.NamespacedName]Allocation{}
	nodes, endpoints := s.servingNodes(), withEndpoints(s.Slices)
	services, addresses := byAge(s.Services), s.newLedger()
	for _, svc := range services {
		if s.serves(svc) && addresses.fromPool(svc) {
			addresses.retainCurrent(svc)
		}
	}
	owners := s.priorOwners(addresses)
	released := addresses.releases(services, owners)
	had := owners.withReleased(released)
	refused := s.refused(had)
	taken := s.reserved(refused, had.ofPorts())
	for at, who := range had {
		taken.reserve(at, owner{service: who, description: "the Service " + who.String()})
	}
	for _, svc := range owners.allocationOrder(services) {
		switch {
		case !s.serves(svc):
		case addresses.fromPool(svc):
			v := addresses.allocate(svc)
			v.inUse(s.InUse)
			out[serviceKey(svc)] = v
		default:
			v := Allocation{Ours: true, Reason: ReasonNodePortRange, Message: s.inNodePorts(svc)}
			if v.Message == "" {
				v = taken.allocateNodeAddresses(svc, nodes, endpoints[serviceKey(svc)])
			}
			v.heldPorts = owners.heldPorts(svc, v.Addresses)
			out[serviceKey(svc)] = v
		}
	}
	for who, ports := range refused {
		v := out[who]
		v.refused = refusalText(ports)
		out[who] = v
	}
	for who, places := range released {
		v := out[who]
		v.released = places
		out[who] = v
	}
	return out
}

// allocateNodeAddresses allocates to a Service the addresses of the nodes at which all its ports are free. endpoints
// are the nodes with endpoints of it.
func (p ports) allocateNodeAddresses(svc *corev1.Service, nodes []node, endpoints map[string]bool) Allocation {
	v := Allocation{Ours: true}
	var conflicts []string
	wanted := requestedAddresses(svc)
	for _, n := range nodes {
		if isLocal(svc) && !endpoints[n.name] {
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
	case len(nodes) > 0 && isLocal(svc):
		v.Reason, v.Message = ReasonNoNode, "externalTrafficPolicy is Local, and no node that can serve has a ready endpoint of it"
	default:
		v.Reason, v.Message = ReasonNoNode, "no node has an address for it: there is none of its address families, or labels exclude all"
	}
	return v
}

// shownConflicts limits the conflicts in a message.
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
