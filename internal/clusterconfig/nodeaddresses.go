// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/convert"
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
func PodCIDRs(n *corev1.Node) []netip.Prefix {
	return convert.Valid(n.Spec.PodCIDRs, netip.ParsePrefix)
}

// ParseAddresses parses addresses that are separated by commas. It ignores what is no address.
func ParseAddresses(text string) []netip.Addr {
	return convert.Valid(strings.Split(text, ","), func(word string) (netip.Addr, error) {
		a, err := netip.ParseAddr(strings.TrimSpace(word))
		return a.Unmap(), err
	})
}
