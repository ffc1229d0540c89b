// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Questions go to all machines on a link. Each machine is a member of these groups without joining them (RFC 1112 §4,
// RFC 4291 §2.7.1), and no switch with multicast snooping blocks them. A machine that does not listen on the port
// receives nothing.
var (
	group4 = netip.AddrFrom4([4]byte{224, 0, 0, 1})
	group6 = netip.MustParseAddr("ff02::1")
)

// multicast sends and receives questions on the machine's packet socket.
type multicast struct {
	packets net.PacketConn
	// links returns the interfaces to use; nil means none.
	links func() ([]net.Interface, error)
}

// setInterface makes packets to an IPv4 group leave by a link. Nothing else on this socket is sent to such a group.
func (n *multicast) setInterface(link net.Interface) error {
	socket, ok := n.packets.(syscall.Conn)
	if !ok {
		return errors.New("gossip: no socket that multicast could use")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Index)})
	})
	return errors.Join(err, inner)
}

// send sends a datagram on all links, to each of some ports, by IPv4 and by IPv6. It returns how many were sent.
func (n *multicast) send(b []byte, ports []uint16) (int, error) {
	links, err := n.multicastLinks()
	if err != nil {
		return 0, err
	}
	sent := 0
	var errs []error
	for _, l := range links {
		chosen := n.setInterface(l)
		for _, port := range ports {
			for _, to := range []*net.UDPAddr{
				{IP: group4.AsSlice(), Port: int(port)}, {IP: group6.AsSlice(), Port: int(port), Zone: l.Name},
			} {
				err := chosen
				if err == nil || to.IP.To4() == nil {
					_, err = n.packets.WriteTo(b, to)
				}
				if err != nil {
					errs = append(errs, err) // no address of that family, or the link is down
					continue
				}
				sent++
			}
		}
	}
	if sent > 0 {
		return sent, nil
	}
	return 0, errors.Join(errs...)
}

// multicastLinks returns the links that are up and support multicast.
func (n *multicast) multicastLinks() ([]net.Interface, error) {
	if n.links == nil {
		return nil, nil
	}
	links, err := n.links()
	if err != nil {
		return nil, fmt.Errorf("gossip: list the links: %w", err)
	}
	var out []net.Interface
	for _, l := range links {
		if l.Flags&net.FlagUp != 0 && l.Flags&net.FlagMulticast != 0 && l.Flags&net.FlagLoopback == 0 {
			out = append(out, l)
		}
	}
	return out, nil
}
