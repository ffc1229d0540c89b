// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// ensureDevice makes the device that has the addresses of Services, and returns it.
func ensureDevice() (netlink.Link, error) {
	link, err := netlink.LinkByName(nft.IPVSDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		attrs := netlink.NewLinkAttrs()
		attrs.Name = nft.IPVSDevice
		if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("making the device %s for the addresses of Services: %w", nft.IPVSDevice, err)
		}
		if link, err = netlink.LinkByName(nft.IPVSDevice); err != nil {
			return nil, fmt.Errorf("finding the device %s: %w", nft.IPVSDevice, err)
		}
	case err != nil:
		return nil, fmt.Errorf("finding the device %s: %w", nft.IPVSDevice, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := errors.Join(netlink.LinkSetARPOff(link), netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone),
			netlink.LinkSetUp(link)); err != nil {
			return nil, fmt.Errorf("setting the device %s up: %w", nft.IPVSDevice, err)
		}
	}
	return link, nil
}

// deviceIntact reports whether the device exists, is up, and has all addresses that the last sync left on it.
// Additional addresses harm no Service.
func (p *Proxier) deviceIntact() (bool, error) {
	link, err := netlink.LinkByName(nft.IPVSDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("finding the device %s: %w", nft.IPVSDevice, err)
	case link.Attrs().Flags&net.FlagUp == 0:
		return false, nil
	}
	for _, f := range p.families {
		have, err := deviceAddresses(link, f.netlink)
		if err != nil {
			return false, err
		}
		for a := range f.addresses {
			if !have[a] {
				return false, nil
			}
		}
	}
	return true, nil
}

// deviceAddresses returns the device's addresses of one family.
func deviceAddresses(link netlink.Link, family int) (map[netip.Addr]bool, error) {
	all, err := netlinkutil.ConsistentList(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of %s: %w", nft.IPVSDevice, err)
	}
	out := make(map[netip.Addr]bool, len(all))
	for _, h := range all {
		if a, ok := netip.AddrFromSlice(h.IP); ok {
			out[a.Unmap()] = true
		}
	}
	return out, nil
}

const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE: no link-local address

// applyAddresses makes the device's addresses of one family match want: before the virtual servers are made it adds
// missing ones, and with prune it removes the others.
func applyAddresses(family int, want map[netip.Addr]bool, prune bool) error {
	link, err := ensureDevice()
	if err != nil {
		return err
	}
	have, err := netlinkutil.ConsistentList(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", nft.IPVSDevice, err)
	}
	present := map[netip.Addr]bool{}
	var errs []error
	for _, h := range have {
		a, ok := netip.AddrFromSlice(h.IP)
		if !ok {
			continue
		}
		a = a.Unmap()
		present[a] = true
		if prune && !want[a] && !a.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &h); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("removing the address %s: %w", a, err))
			}
		}
	}
	for a := range want {
		if present[a] {
			continue
		}
		addr := deviceAddress(a)
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("adding the address %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

// deviceAddress returns an address that the kernel never chooses as a source for the node's connections and replies:
// for devices without an address it would choose among all addresses of the node.
func deviceAddress(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Scope: unix.RT_SCOPE_HOST}
	if a.Is6() {
		addr.Scope, addr.Flags = unix.RT_SCOPE_UNIVERSE, unix.IFA_F_NODAD
		addr.ValidLft = math.MaxUint32 // valid forever, but deprecated: preferred for no time
	}
	return addr
}

// localAddresses returns the addresses of all devices except ours.
func localAddresses() (map[netip.Addr]bool, error) {
	own := -1
	if link, err := netlink.LinkByName(nft.IPVSDevice); err == nil {
		own = link.Attrs().Index
	}
	all, err := netlinkutil.Addresses(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of this machine: %w", err)
	}
	out := map[netip.Addr]bool{}
	for _, h := range all {
		if a, ok := netip.AddrFromSlice(h.IP); ok && h.LinkIndex != own {
			out[a.Unmap()] = true
		}
	}
	return out, nil
}
