// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	utilsets "k8s.io/apimachinery/pkg/util/sets"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/utils/ptr"
)

// Node is the node for which endpoints are chosen.
type Node struct {
	Name, Zone string
	// Unreachable are the nodes that this node cannot reach.
	Unreachable map[string]bool
}

// Endpoints returns the endpoints to which a node sends packets for one TCP port of a Service, by the port's name. They
// are those that the node's Service proxy uses for the cluster IP: endpoints that are ready, or if none is, those that
// terminate and still serve. Where the slices' hints say so, they are only those of the node's own zone, or of the node
// itself. Endpoints on unreachable nodes are left out if others remain. The Service's traffic policies are ignored. The
// slices are the Service's. Each address is returned once.
func (p Node) Endpoints(all []*discoveryv1.EndpointSlice, port string) []netip.AddrPort {
	filter := reachabilityFilter{unreachableNodes: p.Unreachable}
	groups := map[discoveryv1.AddressType][]*slicePair{}
	for _, s := range all {
		groups[s.AddressType] = append(groups[s.AddressType], &slicePair{received: s})
	}
	var out []netip.AddrPort
	for _, g := range groups {
		reached := filter.reached(g)
		var candidates []upstream.Endpoint
		for _, s := range g {
			candidates = append(candidates, p.candidates(filter.rewrite(s.received, reached), port)...)
		}
		chosen, _, _, _ := upstream.CategorizeEndpoints(candidates, anyPolicy{}, p.Name,
			map[string]string{corev1.LabelTopologyZone: p.Zone})
		for _, e := range chosen {
			if c, ok := e.(choosable); ok {
				out = append(out, c.address)
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.AddrPort) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	return slices.Compact(out)
}

// candidates returns the endpoints of a slice that have the port.
func (p Node) candidates(s *discoveryv1.EndpointSlice, port string) []upstream.Endpoint {
	var out []upstream.Endpoint
	for _, at := range s.Ports {
		if at.Port == nil || ptr.Deref(at.Name, "") != port || ptr.Deref(at.Protocol, corev1.ProtocolTCP) != corev1.ProtocolTCP {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			for _, text := range e.Addresses {
				if ip, err := netip.ParseAddr(text); err == nil {
					out = append(out, choosable{e, netip.AddrPortFrom(ip, uint16(*at.Port)), e.NodeName != nil && *e.NodeName == p.Name})
				}
			}
		}
	}
	return out
}

// choosable adapts an endpoint to upstream's functions that choose endpoints.
type choosable struct {
	*discoveryv1.Endpoint
	address netip.AddrPort
	local   bool
}

func (c choosable) String() string      { return c.address.String() }
func (c choosable) IP() string          { return c.address.Addr().String() }
func (c choosable) Port() int           { return int(c.address.Port()) }
func (c choosable) IsLocal() bool       { return c.local }
func (c choosable) IsReady() bool       { return ptr.Deref(c.Conditions.Ready, true) }
func (c choosable) IsServing() bool     { return ptr.Deref(c.Conditions.Serving, true) }
func (c choosable) IsTerminating() bool { return ptr.Deref(c.Conditions.Terminating, false) }

func (c choosable) ZoneHints() utilsets.Set[string] {
	if c.Hints == nil {
		return nil
	}
	out := utilsets.New[string]()
	for _, z := range c.Hints.ForZones {
		out.Insert(z.Name)
	}
	return out
}

func (c choosable) NodeHints() utilsets.Set[string] {
	if c.Hints == nil {
		return nil
	}
	out := utilsets.New[string]()
	for _, n := range c.Hints.ForNodes {
		out.Insert(n.Name)
	}
	return out
}

// anyPolicy is a Service without traffic policies.
type anyPolicy struct{ upstream.ServicePort }

func (anyPolicy) String() string             { return "a backend of an Ingress" }
func (anyPolicy) UsesClusterEndpoints() bool { return true }
func (anyPolicy) UsesLocalEndpoints() bool   { return false }
