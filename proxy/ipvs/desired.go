// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	upstream "k8s.io/kubernetes/pkg/proxy"
)

// View is all that the desired state of one family follows from.
type View struct {
	Services  upstream.ServicePortMap // of ServicePorts of this package
	Endpoints upstream.EndpointsMap
	// NodeName and Topology are this node's.
	NodeName string
	Topology map[string]string
	// NodePortAddrs are the local addresses that answer on node ports.
	NodePortAddrs []netip.Addr
	// Elsewhere are addresses that must not become ours because of a Service: those of this node's own devices, and those
	// of the other nodes, which could no longer be reached.
	Elsewhere map[netip.Addr]bool
	// Scheduler is for Services that name none.
	Scheduler string
}

// Desired says what the kernel should hold.
func Desired(v View) State {
	s := newState()
	for name, port := range v.Services {
		svc, ok := port.(*ServicePort)
		if !ok {
			continue // the tracker makes no other
		}
		v.service(&s, svc, v.Endpoints[name])
	}
	return s
}

// target is where traffic to some addresses of a Service port goes.
type target struct {
	reals []netip.AddrPort
	// drop says that there are endpoints, but none that this traffic may have: silence, so that a load balancer tries
	// another node. Without any endpoint IPVS itself answers that the port is closed.
	drop bool
}

func (v View) service(s *State, svc *ServicePort, endpoints []upstream.Endpoint) {
	cluster, local, reachable, any := upstream.CategorizeEndpoints(endpoints, svc, v.NodeName, v.Topology)
	proto := svc.Protocol()
	for _, ep := range reachable {
		if ep.IsLocal() {
			s.add(setHairpin, ep.IP(), ep.IP(), protoName(proto), strconv.Itoa(ep.Port()))
		}
	}
	pick := func(onlyLocal bool) target {
		if onlyLocal {
			return target{addrPorts(local), any && len(local) == 0}
		}
		return target{addrPorts(cluster), any && len(cluster) == 0}
	}
	internal, external := pick(svc.InternalPolicyLocal()), pick(svc.ExternalPolicyLocal())

	clusterIP, ok := addr(svc.ClusterIP().String())
	if !ok {
		return
	}
	key := Key{proto, clusterIP, uint16(svc.Port())}
	v.serve(s, svc, key, internal)
	s.add(setClusterIPs, clusterIP.String())

	var outside []Key
	for _, ip := range svc.ExternalIPs() {
		if a, ok := addr(ip.String()); ok {
			outside = append(outside, Key{proto, a, uint16(svc.Port())})
		}
	}
	for _, ip := range svc.LoadBalancerVIPs() {
		if a, ok := addr(ip.String()); ok {
			k := Key{proto, a, uint16(svc.Port())}
			outside = append(outside, k)
			v.sources(s, svc, k)
		}
	}
	if port := svc.NodePort(); port != 0 {
		for _, a := range v.NodePortAddrs {
			outside = append(outside, Key{proto, a, uint16(port)})
		}
	}
	for _, k := range outside {
		v.serve(s, svc, k, external)
		if !svc.ExternalPolicyLocal() {
			s.add(setMasquerade, k.element()...)
			continue
		}
		s.add(setKept, k.element()...)
		if !svc.InternalPolicyLocal() {
			// What pods and this node send is bound by no external policy: it goes the way of the cluster address.
			s.add(setShortcut, append(k.element(), ":", clusterIP.String(), strconv.Itoa(svc.Port()))...)
		}
	}
}

// serve makes the virtual server at k, and its address ours where it may be.
func (v View) serve(s *State, svc *ServicePort, k Key, t target) {
	server := VirtualServer{Server: Server{Scheduler: v.schedulerOf(svc)}, Reals: t.reals}
	if svc.SessionAffinityType() == corev1.ServiceAffinityClientIP {
		server.Affinity = uint32(svc.StickyMaxAgeSeconds())
	}
	if t.drop {
		s.add(setDropped, k.element()...)
	}
	s.Servers[k] = server
	if v.Elsewhere[k.Addr] {
		return
	}
	s.Addresses[k.Addr] = true
	s.add(setAddresses, k.Addr.String())
	s.add(setPorts, k.element()...)
}

// sources closes k to all but the Service's source ranges. This node's own requests come from the address itself, which
// is allowed where one of the node's addresses is.
func (v View) sources(s *State, svc *ServicePort, k Key) {
	ranges := svc.LoadBalancerSourceRanges()
	if len(ranges) == 0 {
		return
	}
	s.add(setGuarded, k.element()...)
	allow := func(p string) { s.add(setAllowed, append(k.element(), p)...) }
	var prefixes []netip.Prefix
	for _, r := range ranges {
		if p, err := netip.ParsePrefix(r.String()); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	prefixes = withoutOverlap(prefixes)
	for _, p := range prefixes {
		allow(p.String())
	}
	own := slices.ContainsFunc(v.NodePortAddrs, func(a netip.Addr) bool { return contains(prefixes, a) })
	if own && !contains(prefixes, k.Addr) {
		allow(netip.PrefixFrom(k.Addr, k.Addr.BitLen()).String())
	}
}

// withoutOverlap leaves out what lies in another: an nftables set of intervals takes no two that overlap.
func withoutOverlap(in []netip.Prefix) []netip.Prefix {
	slices.SortFunc(in, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var out []netip.Prefix
	for _, p := range in {
		if !contains(out, p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (s State) add(set string, parts ...string) { s.Sets[set][strings.Join(parts, " ")] = true }

// element is the key as the parts of a concatenated nftables key.
func (k Key) element() []string {
	return []string{k.Addr.String(), protoName(k.Protocol), strconv.Itoa(int(k.Port))}
}

func protoName(p corev1.Protocol) string { return strings.ToLower(string(p)) }

func addr(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a.Unmap(), err == nil
}

func addrPorts(endpoints []upstream.Endpoint) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ep := range endpoints {
		if a, ok := addr(ep.IP()); ok {
			out = append(out, netip.AddrPortFrom(a, uint16(ep.Port())))
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}
