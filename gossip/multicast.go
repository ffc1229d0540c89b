// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The groups to which questions go: one of IPv4's for the use within a site (RFC 2365), one of IPv6's that belongs to nobody and
// stays on its link (RFC 4291 §2.7). Both end with "CR". A datagram is sent with a life of one hop.
var (
	group4 = netip.AddrFrom4([4]byte{239, 255, 'C', 'R'})
	group6 = netip.MustParseAddr("ff12::4352")
)

// multicast is the socket by which a machine asks and is asked: the one of its packets.
type multicast struct {
	packets net.PacketConn
	// links are those to ask on; nil means none.
	links func() ([]net.Interface, error)
}

// socket calls f with the file descriptor of a UDP socket; there is none in tests.
func (n *multicast) socket(f func(fd int, v6 bool) error) error {
	udp, ok := n.packets.(*net.UDPConn)
	if !ok {
		return errors.New("gossip: no socket that multicast could use")
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		domain, domainErr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		if inner = domainErr; inner == nil {
			inner = f(int(fd), domain == unix.AF_INET6)
		}
	})
	return errors.Join(err, inner)
}

// listen makes the socket hear questions on all links. It may be called again when there are more. A link that cannot is left out:
// it has no address of that family, say.
func (n *multicast) listen() error {
	links, err := n.all()
	if err != nil {
		return err
	}
	heard := 0
	err = n.socket(func(fd int, v6 bool) error {
		for _, l := range links {
			if joined(unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group4.As4(), Ifindex: int32(l.Index)})) {
				heard++
			}
			if v6 && joined(unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group6.As16(), Interface: uint32(l.Index)})) {
				heard++
			}
		}
		return nil
	})
	if err == nil && heard == 0 && len(links) > 0 {
		err = errors.New("gossip: no link takes part in multicast")
	}
	return err
}

// joined says whether the socket is in the group now; it may have been before.
func joined(err error) bool { return err == nil || errors.Is(err, unix.EADDRINUSE) }

// send sends a datagram on all links, to each of some ports, by IPv4 and by IPv6. It returns how many were sent.
func (n *multicast) send(b []byte, ports []uint16) (int, error) {
	links, err := n.all()
	if err != nil {
		return 0, err
	}
	sent := 0
	var errs []error
	for _, l := range links {
		// Nothing else on this socket goes to a group, so that this is nobody else's business.
		chosen := n.socket(func(fd int, _ bool) error {
			return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(l.Index)})
		})
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

// all are the links that are up and know multicast.
func (n *multicast) all() ([]net.Interface, error) {
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
