// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"slices"
	"strings"
)

// Values of --ingress-host-owner.
const (
	hostOwnerPath      = "path"
	hostOwnerNamespace = "namespace"
)

// Ingress holds the operator's settings of the ingress.
type Ingress struct {
	// HostOwner gives each host to the namespace of the oldest Ingress that has it in a rule.
	HostOwner bool
	// TrustedProxies are networks, in CIDR notation, whose headers about clients' addresses are trusted.
	TrustedProxies []string
	// ProxyProtocol says that connections from TrustedProxies begin with a header of the PROXY protocol.
	ProxyProtocol bool
}

func (i Ingress) hostOwnerValue() string {
	if i.HostOwner {
		return hostOwnerNamespace
	}
	return hostOwnerPath
}

// trustedProxiesValue returns the networks in one order, each once.
func (i Ingress) trustedProxiesValue() string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(i.TrustedProxies))), ",")
}

// IngressProxy holds the settings of a node's ingress proxy.
type IngressProxy struct {
	Memory         int64 // in bytes
	MaxConnections int
}

// Limits of these settings. With less memory, the Go runtime and a table of usual size leave nothing for requests.
const (
	minIngressMemory                             = 64 << 20
	minIngressConnections, maxIngressConnections = 100, 1_000_000
)

func (r *reader) ingressProxy() IngressProxy {
	return IngressProxy{
		Memory:         r.memory("ingress-memory", minIngressMemory),
		MaxConnections: r.integer("ingress-max-connections", minIngressConnections, maxIngressConnections),
	}
}

func (r *reader) ingress() Ingress {
	i := Ingress{HostOwner: r.text("ingress-host-owner") == hostOwnerNamespace, ProxyProtocol: r.boolean("ingress-proxy-protocol")}
	for _, it := range r.elements("ingress-trusted-proxies") {
		n, err := netip.ParsePrefix(it.text)
		if a, single := netip.ParseAddr(it.text); single == nil && a.Zone() == "" {
			a = a.Unmap()
			n, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case err != nil || n.Addr().Is4In6():
			r.addProblem(it.src, "%q is neither a network in CIDR notation nor an address; write it like 192.0.2.0/24", it.text)
		case n != n.Masked():
			r.addProblem(it.src, "%s is an address inside a network; the network is %s", it.text, n.Masked())
		case n.Bits() == 0:
			r.addProblem(it.src, "%s would trust every client's headers about its address", it.text)
		default:
			i.TrustedProxies = append(i.TrustedProxies, n.String())
		}
	}
	if i.ProxyProtocol && len(i.TrustedProxies) == 0 {
		r.addProblem(r.src("ingress-proxy-protocol"), "needs --ingress-trusted-proxies: the header of another client is not trusted")
	}
	return i
}
