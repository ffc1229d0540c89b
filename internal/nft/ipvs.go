// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ServicesByIPVS is the name of the proxy back end that uses the kernel's IPVS. The other names are those of its kernel
// objects.
const (
	ServicesByIPVS = "ipvs"
	IPVSTable      = "coracle-ipvs" // its nftables tables, in both families
	IPVSDevice     = "coracleipvs0" // has the addresses of Services; coracle-* are the pod network's devices
	// IPVSFlag is set on each virtual server of coracle's. It is the third of the flags that the kernel leaves to
	// schedulers, and no scheduler uses it.
	IPVSFlag = 0x20
)

// removeIPVS removes the virtual servers before the addresses and the rules. So meanwhile no connection goes to a wrong
// place.
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
		return nil // the module is not loaded, so there are no virtual servers
	}
	h, err := ipvs.New("")
	if err != nil {
		return fmt.Errorf("opening IPVS: %w", err)
	}
	defer h.Close()
	all, err := h.GetServices()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil // this kernel has no IPVS
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
