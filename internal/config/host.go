// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// Host is what defaults are taken from on the machine.
type Host interface {
	Hostname() (string, error)
	// Addresses returns addresses that other machines can reach this one at, best first. Those inside the given
	// networks, which are the cluster's own, are left out.
	Addresses(except []*net.IPNet) ([]net.IP, error)
	// Owns says whether an address is one of the machine's.
	Owns(ip net.IP) (bool, error)
}

// LocalHost is the machine that this process runs on.
type LocalHost struct{}

// Hostname is what the kernel says.
func (LocalHost) Hostname() (string, error) { return os.Hostname() }

// Addresses puts the address of the interface with the default route first.
func (LocalHost) Addresses(except []*net.IPNet) ([]net.IP, error) {
	var out []net.IP
	add := func(ip net.IP) {
		if !usable(ip) || within(ip, except) {
			return
		}
		for _, have := range out {
			if have.Equal(ip) {
				return
			}
		}
		out = append(out, ip)
	}
	if ip, err := utilnet.ChooseHostInterface(); err == nil {
		add(ip)
	}
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || madeForContainers(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				add(n.IP)
			}
		}
	}
	return out, nil
}

// Owns looks at all interfaces, also those that are down.
func (LocalHost) Owns(ip net.IP) (bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("listing the addresses of this machine: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return true, nil
		}
	}
	return false, nil
}

func usable(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && a.Unmap().IsGlobalUnicast()
}

func within(ip net.IP, networks []*net.IPNet) bool {
	for _, n := range networks {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// madeForContainers tells interfaces of container networks by name: their addresses mean nothing to others.
func madeForContainers(name string) bool {
	for _, p := range []string{"coracle", "cni", "docker", "br-", "flannel", "cali", "virbr", "veth", "lxc", "podman", "kube-"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
