// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// portTaken says whether a program of the host listens at a TCP port of an address, or of all addresses. It asks the kernel for the port and gives it back, without
// listening there: what comes meanwhile is answered as before.
func portTaken(at netip.AddrPort) (bool, error) {
	var address unix.Sockaddr
	family := unix.AF_INET
	if at.Addr().Is4() {
		address = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("making a socket: %w", err)
	}
	defer unix.Close(fd)
	// Without it, connections of before that have ended would count for a minute.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return false, fmt.Errorf("setting a socket's option: %w", err)
	}
	err = unix.Bind(fd, address)
	if errors.Is(err, unix.EADDRINUSE) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking for port %s: %w", at, err)
	}
	return false, nil
}
