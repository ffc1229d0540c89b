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

// Host is the machine, as the source of defaults.
type Host interface {
	Hostname() (string, error)
	// Addresses returns the addresses at which other machines can reach this one, best first. It omits those inside the
	// given networks, which are the cluster's own.
	Addresses(except []netip.Prefix) ([]netip.Addr, error)
	// Owns says whether the machine has an address.
	Owns(ip netip.Addr) (bool, error)
}

// LocalHost is the machine that this process runs on.
type LocalHost struct{}

// Hostname returns the kernel's host name.
func (LocalHost) Hostname() (string, error) { return os.Hostname() }

// Addresses returns the usable addresses of Links. The address of the interface with the default route comes first, and
// temporary addresses come last.
func (LocalHost) Addresses(except []netip.Prefix) ([]netip.Addr, error) {
	passing := temporaryAddresses()
	var out []netip.Addr
	add := func(ip netip.Addr) {
		if isUsable(ip) && !inNetworks(ip, except) && !slices.Contains(out, ip) {
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

// lastingFirst moves temporary addresses to the end and keeps the order otherwise.
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

// temporaryAddresses returns the machine's IPv6 addresses that the kernel replaces every day (RFC 8981), or does not
// use any more for new connections. It returns none if that cannot be found out, because each is a usable address.
func temporaryAddresses() map[netip.Addr]bool {
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

// Links returns the interfaces that are up and appear to lead to other machines.
func (LocalHost) Links() ([]net.Interface, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	return slices.DeleteFunc(ifaces, func(i net.Interface) bool {
		return i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || madeForContainers(i.Name)
	}), nil
}

// Owns checks all interfaces, also those that are down.
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

// ReplacingHost is the LocalHost as the source of an address that replaces a lost one. It rejects some links: a VPN, a
// bridge of virtual machines and a storage network keep their addresses while the machine's cable is unplugged, and
// other machines do not reach the machine there.
type ReplacingHost struct {
	LocalHost
	// Links are the names of the links on which the machine had its addresses.
	Links []string
}

// LinksWith returns the names of the interfaces that have one of these addresses.
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

// Addresses returns those addresses of LocalHost that are on one of Links, or on a link with a default route.
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

// linksWithDefaultRoute reads the main routing table, as other programs do to find the machine's address. A VPN that
// takes all traffic of a machine has a table of its own. A route over a link without a carrier does not count.
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

// addressesOf returns the addresses of a link. It returns none for a link that has been removed meanwhile.
func addressesOf(i net.Interface) (out []netip.Addr) {
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			out = append(out, addrOf(n.IP))
		}
	}
	return out
}

// addrOf converts an interface's address to netip's type. It returns the zero value for an invalid one.
func addrOf(bytes net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(bytes)
	return a.Unmap()
}

func isUsable(ip netip.Addr) bool { return ip.IsGlobalUnicast() }

func inNetworks(ip netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// madeForContainers says whether an interface belongs to a container network, by its name. Other machines cannot reach
// the addresses of such a network.
func madeForContainers(name string) bool {
	prefixes := []string{"coracle", "cni", "docker", "br-", "flannel", "cali", "virbr", "veth", "lxc", "podman", "kube-"}
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
