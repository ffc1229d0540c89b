// SPDX-License-Identifier: Apache-2.0

// Package outside connects to servers outside of the cluster whose names come from tenants or from an authority. It
// checks each address of a name when it dials it, so that no name leads into the cluster or to the machine.
package outside

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// ErrRefused is the error for an address that may not be dialled.
var ErrRefused = errors.New("this address may not be dialled")

// Dialer makes a dialer that connects to no address for which refuse returns true. refuse receives addresses without a
// zone, and IPv4 addresses in IPv4 form.
func Dialer(timeout time.Duration, refuse func(netip.Addr) bool) *net.Dialer {
	return &net.Dialer{Timeout: timeout, Control: func(_, address string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("reading the address of a server: %w", err)
		}
		if ip := a.Addr().Unmap().WithZone(""); refuse(ip) {
			return fmt.Errorf("%s: %w", ip, ErrRefused)
		}
		return nil
	}}
}

// Local reports whether an address is loopback, unspecified, link-local or multicast: none leads to one other machine.
func Local(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast()
}
