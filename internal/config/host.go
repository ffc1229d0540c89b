// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

// Host is what defaults are taken from on the machine.
type Host interface {
	Hostname() (string, error)
	// Addresses returns addresses that other machines can reach this one at, best first. Those inside the given
	// networks, which are the cluster's own, are left out.
	Addresses(except []netip.Prefix) ([]netip.Addr, error)
	// Owns says whether an address is one of the machine's.
	Owns(ip netip.Addr) (bool, error)
}

// LocalHost is the machine that this process runs on.
type LocalHost struct{}

// Hostname is what the kernel says.
func (LocalHost) Hostname() (string, error) { return os.Hostname() }

// Addresses puts the address of the interface with the default route first, and temporary ones last.
func (LocalHost) Addresses(except []netip.Prefix) ([]netip.Addr, error) {
	passing := temporary()
	var out []netip.Addr
	add := func(ip netip.Addr) {
		if usable(ip) && !within(ip, except) && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	if ip, err := utilnet.ChooseHostInterface(); err == nil {
		add(addrOf(ip))
	}
	links, err := LocalHost{}.Links()
	if err != nil {
		return nil, err
	}
	for _, i := range links {
		for _, ip := range addressesOf(i) {
			add(ip)
		}
	}
	return lastingFirst(out, passing), nil
}

// lastingFirst puts addresses that pass behind the others, and leaves the order otherwise.
func lastingFirst(ips []netip.Addr, passing map[netip.Addr]bool) []netip.Addr {
	slices.SortStableFunc(ips, func(a, b netip.Addr) int {
		switch {
		case passing[a] == passing[b]:
			return 0
		case passing[b]:
			return -1
		}
		return 1
	})
	return ips
}

// temporary are the machine's IPv6 addresses that the kernel replaces every day (RFC 8981), or uses no more for new
// connections. None if that cannot be found out: each is a usable address.
func temporary() map[netip.Addr]bool {
	addrs, err := netlinkutil.Addresses(netlink.FAMILY_V6)
	if err != nil {
		return nil
	}
	out := map[netip.Addr]bool{}
	for _, a := range addrs {
		if a.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED) != 0 {
			out[addrOf(a.IP)] = true
		}
	}
	return out
}

// Links are the interfaces that are up and lead to other machines, as far as one can tell.
func (LocalHost) Links() ([]net.Interface, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	return slices.DeleteFunc(ifaces, func(i net.Interface) bool {
		return i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || madeForContainers(i.Name)
	}), nil
}

// Owns considers all interfaces, also those that are down.
func (LocalHost) Owns(ip netip.Addr) (bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("listing the addresses of this machine: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && addrOf(n.IP) == ip {
			return true, nil
		}
	}
	return false, nil
}

// ReplacingHost is the LocalHost when it is asked for an address in place of one that is gone. Not every link will do:
// a VPN, a bridge of virtual machines and a storage network keep their addresses while the machine's cable is out, and
// are not where others reach it.
type ReplacingHost struct {
	LocalHost
	// Links are the names of those where the machine had its addresses.
	Links []string
}

// LinksWith are the names of the interfaces that have one of these addresses.
func (LocalHost) LinksWith(ips []netip.Addr) ([]string, error) {
	byLink, err := addressesOfLinks()
	if err != nil {
		return nil, err
	}
	var out []string
	for name, has := range byLink {
		if slices.ContainsFunc(has, func(ip netip.Addr) bool { return slices.Contains(ips, ip) }) {
			out = append(out, name)
		}
	}
	return out, nil
}

// Addresses are those of LocalHost that are on one of Links, or on a link with a default route.
func (h ReplacingHost) Addresses(except []netip.Prefix) ([]netip.Addr, error) {
	found, err := h.LocalHost.Addresses(except)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	outward, err := linksWithDefaultRoute()
	if err != nil {
		return nil, err
	}
	byLink, err := addressesOfLinks()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(ip netip.Addr) bool {
		for name, has := range byLink {
			if slices.Contains(has, ip) && (slices.Contains(h.Links, name) || outward[name]) {
				return false
			}
		}
		return true
	}), nil
}

// linksWithDefaultRoute looks at the main table, as other programs do to find the machine's address: a VPN that takes
// all of a machine's traffic has a table of its own. A route over a link without a carrier is none.
func linksWithDefaultRoute() (map[string]bool, error) {
	routes, err := netlinkutil.Routes(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing this machine's routes: %w", err)
	}
	out := map[string]bool{}
	add := func(index, flags int) {
		if i, err := net.InterfaceByIndex(index); err == nil && flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) == 0 {
			out[i.Name] = true
		}
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			continue // "unreachable default", for instance
		}
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		add(r.LinkIndex, r.Flags)
		for _, hop := range r.MultiPath {
			add(hop.LinkIndex, hop.Flags)
		}
	}
	return out, nil
}

func addressesOfLinks() (map[string][]netip.Addr, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	out := map[string][]netip.Addr{}
	for _, i := range ifaces {
		out[i.Name] = addressesOf(i)
	}
	return out, nil
}

// addressesOf are a link's; none of one that went away meanwhile.
func addressesOf(i net.Interface) (out []netip.Addr) {
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			out = append(out, addrOf(n.IP))
		}
	}
	return out
}

// addrOf is an interface's address as netip has it; the zero value for none.
func addrOf(bytes net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(bytes)
	return a.Unmap()
}

func usable(ip netip.Addr) bool { return ip.IsGlobalUnicast() }

func within(ip netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// madeForContainers tells interfaces of container networks by name: their addresses mean nothing to others.
func madeForContainers(name string) bool {
	prefixes := []string{"coracle", "cni", "docker", "br-", "flannel", "cali", "virbr", "veth", "lxc", "podman", "kube-"}
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
