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
	// NeverLocal are addresses that must not become ours because of a Service: those of this node's own devices, and
	// those of the other nodes, which could no longer be reached.
	NeverLocal map[netip.Addr]bool
	// Scheduler is for Services that name none.
	Scheduler string
}

// Desired says what the kernel should hold.
func Desired(v View) DesiredState {
	l := newLedger()
	l.update(v, nil)
	return l.state
}

// portState is what one Service port adds to the state.
type portState struct {
	name       upstream.ServicePortName
	candidates []*candidate // by address and port
	members    members      // what goes with no virtual server
}

// candidate is a virtual server as one Service port wants it, with what belongs to it. Of several Services that want an
// address and port, the first by name has it, and what others want to go with it is not in force.
type candidate struct {
	key     Key
	server  VirtualServer
	local   bool // the address is to be on our device
	members members
}

// member is an element of a set or map of nftables.
type member struct{ set, text string }

type members []member

func (m *members) add(set string, parts ...string) {
	*m = append(*m, member{set, strings.Join(parts, " ")})
}

// portState returns nil where there is nothing to serve.
func (v View) portState(name upstream.ServicePortName) *portState {
	svc, ok := v.Services[name].(*ServicePort)
	if !ok {
		return nil // gone; the tracker makes no other
	}
	p := &portState{name: name}
	v.service(p, svc, v.Endpoints[name])
	return p
}

// candidate is the port's at an address and port, if there is one.
func (p *portState) candidate(k Key) *candidate {
	if at := slices.IndexFunc(p.candidates, func(o *candidate) bool { return o.key == k }); at >= 0 {
		return p.candidates[at]
	}
	return nil
}

// target is where traffic to some addresses of a Service port goes.
type target struct {
	reals []netip.AddrPort
	// drop says that there are endpoints, but none that this traffic may have: silence, so that a load balancer tries
	// another node. Without any endpoint IPVS itself answers that the port is closed.
	drop bool
}

func (v View) service(p *portState, svc *ServicePort, endpoints []upstream.Endpoint) {
	cluster, local, reachable, any := upstream.CategorizeEndpoints(endpoints, svc, v.NodeName, v.Topology)
	proto := svc.Protocol()
	for _, ep := range reachable {
		if ep.IsLocal() {
			p.members.add(setHairpin, ep.IP(), ep.IP(), protoName(proto), strconv.Itoa(ep.Port()))
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
	v.serve(p, svc, Key{proto, clusterIP, uint16(svc.Port())}, internal)
	p.members.add(setClusterIPs, clusterIP.String())

	outside := func(a netip.Addr, port int, sources bool) {
		o := v.serve(p, svc, Key{proto, a, uint16(port)}, external)
		if sources {
			v.sources(o, svc)
		}
		if !svc.ExternalPolicyLocal() {
			o.members.add(setMasquerade, o.key.element()...)
			return
		}
		o.members.add(setKept, o.key.element()...)
		if !svc.InternalPolicyLocal() {
			// What pods and this node send is bound by no external policy: it goes the way of the cluster address.
			o.members.add(setShortcut, append(o.key.element(), ":", clusterIP.String(), strconv.Itoa(svc.Port()))...)
		}
	}
	for _, ip := range svc.ExternalIPs() {
		if a, ok := addr(ip.String()); ok {
			outside(a, svc.Port(), slices.ContainsFunc(svc.LoadBalancerVIPs(), ip.Equal))
		}
	}
	for _, ip := range svc.LoadBalancerVIPs() {
		if a, ok := addr(ip.String()); ok {
			outside(a, svc.Port(), true)
		}
	}
	if port := svc.NodePort(); port != 0 {
		for _, a := range v.NodePortAddrs {
			outside(a, port, false)
		}
	}
}

// serve offers the virtual server at k, instead of what the port offers there already, and its address where that may
// be ours.
func (v View) serve(p *portState, svc *ServicePort, k Key, t target) *candidate {
	o := p.candidate(k)
	if o == nil {
		o = &candidate{}
		p.candidates = append(p.candidates, o)
	}
	*o = candidate{key: k, server: VirtualServer{Server: Server{Scheduler: v.schedulerOf(svc)}, Reals: t.reals},
		local: !v.NeverLocal[k.Addr]}
	if svc.SessionAffinityType() == corev1.ServiceAffinityClientIP {
		o.server.Affinity = uint32(svc.StickyMaxAgeSeconds())
	}
	if t.drop {
		o.members.add(setDropped, k.element()...)
	}
	if o.local {
		o.members.add(setAddresses, k.Addr.String())
		o.members.add(setPorts, k.element()...)
	}
	return o
}

// sources closes a candidate to all but the Service's source ranges. This node's own requests come from the address
// itself, which is allowed where one of the node's addresses is.
func (v View) sources(o *candidate, svc *ServicePort) {
	ranges := svc.LoadBalancerSourceRanges()
	if len(ranges) == 0 {
		return
	}
	k := o.key
	o.members.add(setGuarded, k.element()...)
	allow := func(p string) { o.members.add(setAllowed, append(k.element(), p)...) }
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
