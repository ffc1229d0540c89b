// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// apiService is the Service whose endpoints are the servers.
var apiService = types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}

// nodeAddresses records a node's addresses. There are none once it was deleted.
func (p *Proxy) nodeAddresses(name string, addrs []netip.Addr) {
	p.machine(p.o.externals.nodes, name, addrs)
}

// nodeTunnelAt records where a node's annotation says that packets for its pods arrive, if not at its own addresses. It
// is empty once the node was deleted. Other nodes send packets for its pods there. A Service with such an address would
// get them, or with IPVS keep them from all of these pods. The annotation is not checked, so it only affects external
// IPs.
func (p *Proxy) nodeTunnelAt(name, said string) {
	p.machine(p.o.externals.tunnelAt, name, clusterconfig.ParseAddresses(said))
}

// serverAddresses records the servers' addresses of an EndpointSlice, if it belongs to the Service kubernetes. There
// are none once it was deleted. Every node reaches the API at these. Endpoints that are not ready are recorded, too:
// they are unavailable, or about to join.
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

// machine records addresses in one of the maps of externals.
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

// protected returns the addresses that no node may have because of a Service: the known addresses of machines, and the
// cluster's own.
func (x *externals) protected() []netip.Addr {
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

// isMachine reports whether an address is a node's or a server's.
func (x *externals) isMachine(a netip.Addr) bool {
	a = a.Unmap()
	if slices.Contains(x.nodeAddresses, a) {
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

// isTunnels reports whether packets for a node's pods arrive at an address.
func (x *externals) isTunnels(a netip.Addr) bool {
	for _, addrs := range x.tunnelAt {
		if slices.Contains(addrs, a.Unmap()) {
			return true
		}
	}
	return false
}
