// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/raftstore"
)

const peerPort = 7000

func ip(server int) net.IP { return net.IPv4(10, 0, 0, byte(server)).To4() }

func address(server int) string { return fmt.Sprintf("%v:%d", ip(server), peerPort) }

// openNetwork brings up the one network interface. No other machine is on the network
// but the other guests, so there is no TLS.
func openNetwork(server int) (*raftstore.Network, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("set up the network: %w", err)
	}
	defer unix.Close(fd)
	for _, set := range []struct {
		name  string
		ip    net.IP
		flags uint16
	}{{"lo", net.IPv4(127, 0, 0, 1).To4(), unix.IFF_UP}, {"vec0", ip(server), unix.IFF_UP}} {
		request, err := unix.NewIfreq(set.name)
		if err == nil {
			err = request.SetInet4Addr(set.ip)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCSIFADDR, request)
		}
		if err == nil {
			request.SetUint16(set.flags)
			err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
		}
		if err != nil {
			return nil, fmt.Errorf("set up the network interface %s: %w", set.name, err)
		}
	}
	listener, err := net.Listen("tcp", address(server))
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{}
	return &raftstore.Network{
		Address: address(server), Listener: listener,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
	}, nil
}
