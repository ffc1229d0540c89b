// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import "net/netip"

// IngressUser is the number of the ingress proxy's user and group. Neither Debian nor systemd assigns this number
// (uid-gid in systemd's documentation).
const IngressUser = 61080

// IngressSource returns the address from which the ingress proxy of a node connects to pods. It is the last address of
// the node's pod network. No pod has it, and no other program of the node sends from it. So NetworkPolicies can
// distinguish the proxy from pods and programs.
func IngressSource(podCIDR netip.Prefix) netip.Addr { return LastAddress(podCIDR) }

// LastAddress returns the last address of a network.
func LastAddress(network netip.Prefix) netip.Addr {
	last := network.Masked().Addr().AsSlice()
	for i := network.Bits(); i < 8*len(last); i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	out, _ := netip.AddrFromSlice(last)
	return out
}

// NodeSource returns the address from which a node's programs connect to pods: the first address of the node's pod
// network.
func NodeSource(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }
