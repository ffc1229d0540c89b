// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
	"github.com/coracle-k8s/coracle/internal/nft"
)

// IPVS needs the addresses of Services on a device of the node, so the kernel calls them local, as it does the node's
// own. Host ports must be served at the node's own addresses alone: a pod with host port 443 must not get packets to
// port 443 of a Service.

// serviceAddresses returns the networks of Services, and those addresses of the IPVS device that are in none of them:
// external IPs and load balancer addresses. With nftables there is no such device.
func serviceAddresses(networks []netip.Prefix) ([]netip.Prefix, error) {
	out := slices.Clone(networks)
	link, err := netlink.LinkByName(nft.IPVSDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return out, nil
	case err != nil:
		return nil, fmt.Errorf("finding the device %s: %w", nft.IPVSDevice, err)
	}
	all, err := netlinkutil.ConsistentList(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of %s: %w", nft.IPVSDevice, err)
	}
	for _, h := range all {
		a, ok := netip.AddrFromSlice(h.IP)
		a = a.Unmap()
		if ok && !a.IsLinkLocalUnicast() && !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) }) {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out, nil
}

// serviceAddressesChanged reports whether Services have other addresses now than the table exempts.
func (pn *podNetwork) serviceAddressesChanged() bool {
	now, err := serviceAddresses(pn.o.ServiceCIDRs)
	if err != nil {
		pn.log.Error(err, "Host ports may answer at addresses of new Services", "again", pn.guardPeriod)
		return false
	}
	pn.rules.mu.Lock()
	defer pn.rules.mu.Unlock()
	return !slices.Equal(now, pn.rules.services)
}
