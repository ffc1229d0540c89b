// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// underlay is the network that transports packets between nodes.
type underlay struct {
	device string
	mtu    int
	// addresses are this node's, at most one of each family, IPv4 first, with their networks.
	addresses []netip.Prefix
	// secondDevice is the interface of the address that is not on device, where a node's addresses are on two
	// interfaces. It is empty otherwise.
	secondDevice string
	v4           bool // that address is the IPv4 one
	// barePackets means that the device's packets have no link addresses, as with a VPN's tun: such packets cannot name
	// a next hop.
	barePackets bool
}

// deviceOf returns the interface with this node's address of a family.
func (u underlay) deviceOf(v4 bool) string {
	if u.secondDevice != "" && u.v4 == v4 {
		return u.secondDevice
	}
	return u.device
}

// address returns this node's address of a family.
func (u underlay) address(v4 bool) (netip.Addr, bool) {
	for _, p := range u.addresses {
		if p.Addr().Is4() == v4 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// onLink reports whether the address is in a network of the underlay's own.
func (u underlay) onLink(a netip.Addr) bool {
	return slices.ContainsFunc(u.addresses, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (u underlay) equal(v underlay) bool {
	return u.device == v.device && u.mtu == v.mtu && slices.Equal(u.addresses, v.addresses) &&
		u.secondDevice == v.secondDevice && u.v4 == v.v4 && u.barePackets == v.barePackets
}

// findUnderlay returns the interface that the pattern names, or without a pattern the one that has the node's first
// address. A node's addresses may be on two interfaces: then the MTU is the smaller one.
func findUnderlay(nodeIPs []netip.Addr, pattern string) (underlay, error) {
	links, err := listLinks()
	if err != nil {
		return underlay{}, fmt.Errorf("listing devices: %w", err)
	}
	addrs, err := listAddresses()
	if err != nil {
		return underlay{}, fmt.Errorf("listing addresses: %w", err)
	}
	if pattern != "" {
		return underlayNamed(pattern, links, addrs)
	}
	var u underlay
	for _, ip := range nodeIPs {
		for _, a := range addrs {
			p, ok := prefixOf(a.IPNet)
			if !ok || p.Addr() != ip {
				continue
			}
			l := linkOf(links, a.LinkIndex)
			if l == nil {
				continue
			}
			if u.device == "" {
				u.device, u.mtu = l.Name, l.MTU
			}
			u.barePackets = u.barePackets || hasBarePackets(l)
			if l.Name != u.device {
				u.secondDevice, u.v4 = l.Name, ip.Is4()
			}
			u.mtu = min(u.mtu, l.MTU)
			u.addresses = append(u.addresses, p)
			break
		}
	}
	if u.device == "" {
		return u, fmt.Errorf("no interface has the node's address %v", nodeIPs)
	}
	sortFamilies(u.addresses)
	return u, nil
}

// UnderlayAddresses returns this machine's addresses for packets between nodes, at most one of each family: those of
// the interface that the pattern names, or else the node's own.
func UnderlayAddresses(nodeIPs []netip.Addr, pattern string) ([]netip.Addr, error) {
	u, err := findUnderlay(nodeIPs, pattern)
	return convert.Slice(u.addresses, netip.Prefix.Addr), err
}

// underlayNamed returns the first interface by number that matches the pattern, is up and has an address.
func underlayNamed(pattern string, links []netlink.Link, addrs []netlink.Addr) (underlay, error) {
	var seen []string
	for _, l := range links {
		a := l.Attrs()
		if ok, err := path.Match(pattern, a.Name); err != nil || !ok || ownDevice(a.Name) {
			continue
		}
		seen = append(seen, a.Name)
		u := underlay{device: a.Name, mtu: a.MTU, barePackets: hasBarePackets(a)}
		for _, v4 := range []bool{true, false} {
			for _, addr := range addrs {
				if p, ok := prefixOf(addr.IPNet); ok && addr.LinkIndex == a.Index && p.Addr().Is4() == v4 && p.Addr().IsGlobalUnicast() {
					u.addresses = append(u.addresses, p)
					break
				}
			}
		}
		if len(u.addresses) > 0 && a.Flags&net.FlagUp != 0 {
			return u, nil
		}
	}
	if len(seen) == 0 {
		return underlay{}, fmt.Errorf("no interface is called %s (--network-iface)", pattern)
	}
	return underlay{}, fmt.Errorf("the interface %s (--network-iface %s) is down or has no address", strings.Join(seen, ", "), pattern)
}

// hasBarePackets reports whether a device passes bare packets to a program, or to WireGuard, without link addresses
// (ARPHRD_NONE).
func hasBarePackets(a *netlink.LinkAttrs) bool { return a.EncapType == "none" }

// ownDevice reports whether a device belongs to the pod network.
func ownDevice(name string) bool {
	return name == Bridge || strings.HasPrefix(name, devicePrefix) || strings.HasPrefix(name, shaperPrefix) ||
		strings.HasPrefix(name, tunnelPrefix)
}

func sortFamilies(ps []netip.Prefix) {
	slices.SortStableFunc(ps, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
}

func linkOf(links []netlink.Link, index int) *netlink.LinkAttrs {
	for _, l := range links {
		if l.Attrs().Index == index {
			return l.Attrs()
		}
	}
	return nil
}
