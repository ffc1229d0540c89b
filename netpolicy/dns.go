// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// DNS has the addresses at which a node's pods reach the cluster's DNS. In other distributions the DNS is a Deployment
// in kube-system, and policies are written for its pods: egress to pods k8s-app=kube-dns, port 53. Here it is part of
// the node, so a rule that would admit a connection to such a pod admits one to the node's DNS.
type DNS struct {
	// Servers are the node's own DNS servers, the destinations after translation.
	Servers []netip.AddrPort
	// Service are the cluster IPs of the Service kube-dns, the destinations before translation.
	Service []netip.Addr
}

// The namespace, the labels, the port and the port names that the DNS would have if it ran in pods.
const (
	dnsNamespace = "kube-system"
	dnsPort      = 53
)

var (
	dnsLabels = labels.Set{"k8s-app": "kube-dns"}
	dnsNames  = map[string]string{"udp": "dns", "tcp": "dns-tcp"}
)

// protocolsOf returns the protocols of the DNS (tcp, udp) that a rule with these ports admits.
func (d DNS) protocolsOf(all []networkingv1.NetworkPolicyPort) []string {
	if len(all) == 0 {
		return []string{"tcp", "udp"}
	}
	var out []string
	for _, p := range all {
		proto := protocol(p.Protocol)
		name := dnsNames[proto]
		if name == "" || slices.Contains(out, proto) {
			continue
		}
		ok := p.Port == nil
		if p.Port != nil && p.Port.Type == intstr.String {
			ok = p.Port.StrVal == name
		} else if p.Port != nil {
			s, valid := numericPorts(p)
			ok = valid && s.first <= dnsPort && dnsPort <= s.last
		}
		if ok {
			out = append(out, proto)
		}
	}
	slices.Sort(out)
	return out
}

// isIn reports whether a block of addresses contains the DNS: its Service or the node.
func (d DNS) isIn(spans []span) bool {
	return slices.ContainsFunc(d.Service, func(a netip.Addr) bool { return contains(spans, a) }) ||
		slices.ContainsFunc(d.Servers, func(a netip.AddrPort) bool { return contains(spans, a.Addr()) })
}

// elements returns the set elements by which the kernel recognizes packets to the DNS. For translated packets they are
// the address and port of each server. For packets of clients that are not translated, they are those of the Service.
func (d DNS) elements(v4 bool) map[string]bool {
	out := map[string]bool{}
	for _, a := range d.Servers {
		if a.Addr().Is4() == v4 {
			out[portElement(a)] = true
		}
	}
	for _, a := range d.Service {
		if a.Is4() == v4 {
			out[portElement(netip.AddrPortFrom(a, dnsPort))] = true
		}
	}
	return out
}
