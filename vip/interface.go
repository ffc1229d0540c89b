// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// Interface is the interface on which an address is announced.
type Interface struct {
	Name string
	// Own is the machine's address on the same network. Packets to the announced address are translated to it.
	Own netip.Addr

	index int
	hw    hw
	// source is the source address of IPv6 messages.
	source netip.Addr
}

// Link is an interface with its addresses.
type Link struct {
	net.Interface
	Addresses []netip.Prefix
}

func (l Link) has(address netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == address })
}

// Links lists the machine's interfaces.
func Links() ([]Link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	var out []Link
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it was removed meanwhile
		}
		l := Link{Interface: i}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, _ := netip.AddrFromSlice(n.IP)
			bits, _ := n.Mask.Size()
			l.Addresses = append(l.Addresses, netip.PrefixFrom(ip.Unmap(), bits))
		}
		out = append(out, l)
	}
	return out, nil
}

// Check returns an error for addresses that no machine can announce. reserved are the networks that the cluster uses
// for other purposes.
func Check(address netip.Addr, reserved []netip.Prefix) error {
	if !address.IsValid() || address.Is4In6() || address.Zone() != "" || !address.IsGlobalUnicast() ||
		address == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("%s is not an address that one machine can have on a network", address)
	}
	for _, n := range reserved {
		if n.Contains(address) {
			return fmt.Errorf("%s is inside %s, which the cluster uses for pods or Services", address, n)
		}
	}
	return nil
}

// Find returns the interface for an address: the one with that name or, without a name, the first with a network that
// contains the address.
func Find(links []Link, address netip.Addr, name string) (Interface, error) {
	if i := slices.IndexFunc(links, func(l Link) bool { return l.has(address) }); i >= 0 {
		return Interface{}, fmt.Errorf("%s is an address that this machine has, on %s: choose one that no machine has, or take it off "+
			"that interface "+
			"(another program such as keepalived may have put it there)", address, links[i].Name)
	}
	var networks []string
	found := false
	for _, l := range links {
		if name != "" && l.Name != name {
			continue
		}
		found = true
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 || len(l.HardwareAddr) != len(hw{}) {
			continue
		}
		if place, ok := attachedTo(l, address); ok {
			if err := reservedIn(address, place.network); err != nil {
				return Interface{}, err
			}
			return place.Interface, nil
		}
		for _, p := range l.Addresses {
			if p.Addr().Is4() == address.Is4() && p.Addr().IsGlobalUnicast() {
				networks = append(networks, p.Masked().String()+" on "+l.Name)
			}
		}
	}
	switch {
	case name != "" && !found:
		return Interface{}, fmt.Errorf("there is no interface %s on this machine", name)
	case name != "":
		return Interface{}, fmt.Errorf("%s is in no network of the interface %s (it has: %s), or that is down, or no Ethernet", address,
			name, list(networks))
	}
	return Interface{}, fmt.Errorf("%s is in no network of this machine's Ethernet interfaces (there is: %s)", address, list(networks))
}

func list(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

type attached struct {
	Interface
	network netip.Prefix
}

func attachedTo(l Link, address netip.Addr) (attached, bool) {
	i := slices.IndexFunc(l.Addresses, func(p netip.Prefix) bool { return p.Contains(address) })
	if i < 0 {
		return attached{}, false
	}
	out := Interface{Name: l.Name, Own: l.Addresses[i].Addr(), index: l.Index, hw: hw(l.HardwareAddr), source: l.Addresses[i].Addr()}
	for _, p := range l.Addresses {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			out.source = p.Addr()
		}
	}
	return attached{out, l.Addresses[i]}, true
}

// reservedIn returns an error for the addresses of an IPv4 network that no machine can have.
func reservedIn(address netip.Addr, network netip.Prefix) error {
	if !address.Is4() || network.Bits() >= 31 {
		return nil
	}
	if address == network.Masked().Addr() || address == clusterconfig.LastAddress(network) {
		return fmt.Errorf("%s is the first or the last address of %s, which no machine can have", address, network.Masked())
	}
	return nil
}

// neighbour returns the address as it is announced on this interface.
func (p Interface) neighbour(address netip.Addr) neighbour {
	return neighbour{address: address, own: p.hw, from: p.source}
}
