// SPDX-License-Identifier: Apache-2.0

// Package outside connects to servers outside of the cluster whose names come from others: tenants, or an authority.
// Each address that a name has is judged when it is dialled, so that no name leads into the cluster or the machine.
package outside

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// ErrRefused says that an address may not be dialled.
var ErrRefused = errors.New("this address may not be dialled")

// Dialer makes a dialer that connects to no address which refuse reports. Addresses come without a zone, and IPv4
// ones as such.
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

// Local reports addresses that stand for the machine itself or for its link alone.
func Local(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast()
}
