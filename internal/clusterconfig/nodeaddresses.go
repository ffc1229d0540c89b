// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// NodeAddresses returns the IP addresses of some types, or of all, in a Node's status. Each address is returned once.
func NodeAddresses(n *corev1.Node, types ...corev1.NodeAddressType) (out []netip.Addr) {
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if ip = ip.Unmap(); err == nil && (len(types) == 0 || slices.Contains(types, a.Type)) && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// PodCIDRs returns the networks of a node's pods, as its Node object has them.
func PodCIDRs(n *corev1.Node) (out []netip.Prefix) {
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}
