// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// apiService is the Service whose endpoints are the servers.
var apiService = types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}

// nodeAddresses notes a node's addresses, none when it is gone.
func (p *Proxy) nodeAddresses(name string, addrs []netip.Addr) {
	p.machine(p.o.externals.nodes, name, addrs)
}

// nodeTunnelAt notes where a node says that packets for its pods come in, if that is at other addresses than its own;
// nowhere when it is gone. Other nodes send to these what is for its pods: a Service that had one would get that, or
// with IPVS keep it from all of them. What a node says there is not checked, so it counts for external IPs alone.
func (p *Proxy) nodeTunnelAt(name, said string) {
	var addrs []netip.Addr
	for text := range strings.SplitSeq(said, ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	p.machine(p.o.externals.tunnelAt, name, addrs)
}

// serverAddresses notes the servers' of an EndpointSlice, if it is one of the Service kubernetes; none when it is gone.
// Every node finds the API there. Those that are not ready are noted, too: they are away, or about to join.
func (p *Proxy) serverAddresses(s *discoveryv1.EndpointSlice, gone bool) {
	if groupOf(s).service != apiService {
		return
	}
	var addrs []netip.Addr
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			if a, ok := parseIP(text); ok && !gone {
				addrs = append(addrs, a)
			}
		}
	}
	p.machine(p.o.externals.servers, s.Name, addrs)
}

// machine notes addresses in one of the maps of externals.
func (p *Proxy) machine(in map[string][]netip.Addr, name string, addrs []netip.Addr) {
	p.change(func() bool {
		changed := !slices.Equal(in[name], addrs)
		if len(addrs) == 0 {
			delete(in, name)
		} else {
			in[name] = addrs
		}
		return changed
	})
}

// neverLocal are the addresses that no node may have because of a Service: the machines' as far as they are known, and
// the cluster's own.
func (x *externals) neverLocal() []netip.Addr {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := slices.Clone(x.reserved.Addresses)
	for _, machines := range []map[string][]netip.Addr{x.nodes, x.servers} {
		for _, a := range machines {
			out = append(out, a...)
		}
	}
	return out
}

// isMachine says whether an address is a node's or a server's.
func (x *externals) isMachine(a netip.Addr) bool {
	a = a.Unmap()
	if slices.Contains(x.own, a) {
		return true
	}
	for _, machines := range []map[string][]netip.Addr{x.nodes, x.servers} {
		for _, addrs := range machines {
			if slices.Contains(addrs, a) {
				return true
			}
		}
	}
	return false
}

// isTunnels says whether packets for a node's pods come in at an address.
func (x *externals) isTunnels(a netip.Addr) bool {
	for _, addrs := range x.tunnelAt {
		if slices.Contains(addrs, a.Unmap()) {
			return true
		}
	}
	return false
}
