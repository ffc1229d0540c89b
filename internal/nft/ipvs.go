// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ServicesByIPVS is the back end on the kernel's IPVS, and what it makes there.
const (
	ServicesByIPVS = "ipvs"
	IPVSTable      = "coracle-ipvs" // its nftables tables
	IPVSDevice     = "coracleipvs0" // carries the addresses of Services; coracle-* are the pod network's
	// IPVSFlag is on each virtual server that is ours: the third of the flags that the kernel leaves to schedulers,
	// which none of them uses.
	IPVSFlag = 0x20
)

// removeIPVS takes connections away before addresses and rules, so that none goes where it should not in between.
func removeIPVS() error {
	errs := []error{removeVirtualServers()}
	link, err := netlink.LinkByName(IPVSDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
	case err != nil:
		errs = append(errs, fmt.Errorf("finding the device %s: %w", IPVSDevice, err))
	default:
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("deleting the device %s: %w", IPVSDevice, err))
		}
	}
	for _, f := range []Table{{Family: IPv4, Name: IPVSTable}, {Family: IPv6, Name: IPVSTable}} {
		errs = append(errs, Delete(f))
	}
	return errors.Join(errs...)
}

func removeVirtualServers() error {
	if _, err := netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return nil // the module is not loaded, and nothing is in it
	}
	h, err := ipvs.New("")
	if err != nil {
		return fmt.Errorf("opening IPVS: %w", err)
	}
	defer h.Close()
	all, err := h.GetServices()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil // no IPVS in this kernel, and nothing in it
	}
	if err != nil {
		return fmt.Errorf("listing virtual servers: %w", err)
	}
	var errs []error
	for _, s := range all {
		if s.Flags&IPVSFlag == 0 {
			continue
		}
		if err := h.DelService(s); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("deleting the virtual server %v port %d: %w", s.Address, s.Port, err))
		}
	}
	return errors.Join(errs...)
}
