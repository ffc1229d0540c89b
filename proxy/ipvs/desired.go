// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	upstream "k8s.io/kubernetes/pkg/proxy"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// View is the whole input for the desired state of one family.
type View struct {
	Services  upstream.ServicePortMap // of ServicePorts of this package
	Endpoints upstream.EndpointsMap
	// NodeName and Topology are this node's name and labels.
	NodeName string
	Topology map[string]string
	// NodePortAddrs are the local addresses that serve node ports.
	NodePortAddrs []netip.Addr
	// Protected are addresses that this node must not get because of a Service: those of this node's own devices, and
	// those of other nodes, which could not be reached any more.
	Protected map[netip.Addr]bool
	// Scheduler is the scheduler for Services that name none.
	Scheduler string
}

// Desired returns the state that the kernel should have.
func Desired(v View) DesiredState {
	l := newLedger()
	l.update(v, nil)
	return l.state
}

// portState is what one Service port adds to the state.
type portState struct {
	name       upstream.ServicePortName
	candidates []*candidate // by address and port
	members    members      // elements that belong to no virtual server
}

// candidate is the virtual server that one Service port requests, with the elements that belong to it. If several
// Services request an address and port, the first by name gets it, and the others' elements are not applied.
type candidate struct {
	key     Key
	server  VirtualServer
	local   bool // the address has to be on our device
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
		return nil // deleted; the tracker makes no other type
	}
	p := &portState{name: name}
	v.service(p, svc, v.Endpoints[name])
	return p
}

// candidate returns the port's candidate at an address and port, if there is one.
func (p *portState) candidate(k Key) *candidate {
	if at := slices.IndexFunc(p.candidates, func(o *candidate) bool { return o.key == k }); at >= 0 {
		return p.candidates[at]
	}
	return nil
}

// target is the destination of traffic to some addresses of a Service port.
type target struct {
	reals []netip.AddrPort
	// drop means that there are endpoints, but none that this traffic may use. It is dropped, so that a load balancer
	// tries another node. Without any endpoint IPVS itself rejects the connection.
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
			v.restrictToSourceRanges(o, svc)
		}
		if !svc.ExternalPolicyLocal() {
			o.members.add(setMasquerade, o.key.element()...)
			return
		}
		o.members.add(setKept, o.key.element()...)
		if !svc.InternalPolicyLocal() {
			// External policy does not apply to packets of pods and of this node: they are handled like those to the
			// cluster IP.
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

// serve adds the virtual server at k, or replaces the port's existing one there. It adds the address to our device
// where that is allowed.
func (v View) serve(p *portState, svc *ServicePort, k Key, t target) *candidate {
	o := p.candidate(k)
	if o == nil {
		o = &candidate{}
		p.candidates = append(p.candidates, o)
	}
	*o = candidate{key: k, server: VirtualServer{Server: Server{Scheduler: v.schedulerOf(svc)}, Reals: t.reals},
		local: !v.Protected[k.Addr]}
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

// restrictToSourceRanges restricts a candidate to the Service's source ranges. This node's own requests have the
// address itself as their source, which is allowed if one of the node's addresses is, as with upstream's nftables mode.
func (v View) restrictToSourceRanges(o *candidate, svc *ServicePort) {
	ranges := svc.LoadBalancerSourceRanges()
	if len(ranges) == 0 {
		return
	}
	k := o.key
	o.members.add(setGuarded, k.element()...)
	allow := func(p string) { o.members.add(setAllowed, append(k.element(), p)...) }
	texts := convert.Slice(ranges, (*net.IPNet).String)
	prefixes := withoutOverlap(convert.Slice(convert.Valid(texts, netip.ParsePrefix), netip.Prefix.Masked))
	for _, p := range prefixes {
		allow(p.String())
	}
	own := slices.ContainsFunc(v.NodePortAddrs, func(a netip.Addr) bool { return contains(prefixes, a) })
	if own && !contains(prefixes, k.Addr) {
		allow(netip.PrefixFrom(k.Addr, k.Addr.BitLen()).String())
	}
}

// withoutOverlap removes prefixes that are inside another: an nftables set of intervals does not allow overlaps.
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

// element returns the fields of a concatenated nftables key.
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
