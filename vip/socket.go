// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket receives the frames of one interface that concern one address, and sends frames there (packet(7)).
type socket struct {
	file *os.File
	raw  syscall.RawConn
	// member keeps the machine in the multicast group for requests for an IPv6 address. It is nil for IPv4.
	member net.PacketConn
}

// open opens a socket. The kernel's filter accepts only frames about the address, so that requests for other machines
// wake no process.
func open(p Interface, address netip.Addr) (_ *socket, err error) {
	protocol, filter := uint16(etherARP), filterARP
	if address.Is6() {
		protocol, filter = etherIPv6, filterNDP
	}
	filters := filter(address)
	// The socket has no protocol at first, so that it receives nothing before it has a filter.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	s := &socket{file: os.NewFile(uintptr(fd), "packet:"+p.Name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	program := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return nil, fmt.Errorf("filtering packets: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: p.index}); err != nil {
		return nil, fmt.Errorf("listening for packets on %s: %w", p.Name, err)
	}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, err
	}
	if address.Is6() {
		// The machine has to be a member: switches forward a group's frames only to members, so the interface's filter
		// alone is not enough.
		at := &net.UDPAddr{IP: solicited(address).AsSlice(), Zone: p.Name}
		if s.member, err = joinGroup(at); err != nil {
			return nil, fmt.Errorf("joining the group %s: %w", at.IP, err)
		}
	}
	return s, nil
}

// joinGroup makes the machine a member. The socket never receives anything, since no machine knows its port.
func joinGroup(at *net.UDPAddr) (net.PacketConn, error) {
	link, err := net.InterfaceByName(at.Zone)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "group")
	defer f.Close() // FilePacketConn has its own descriptor
	request := unix.IPv6Mreq{Interface: uint32(link.Index)}
	copy(request.Multiaddr[:], at.IP.To16())
	if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &request); err != nil {
		return nil, err
	}
	return net.FilePacketConn(f)
}

func htons(n uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(n >> 8), byte(n)}) }

// read returns the next frame that another machine sent. It returns an error when the socket is closed or its deadline
// has passed.
func (s *socket) read(buffer []byte) ([]byte, error) {
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := s.raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buffer, 0)
			return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
		})
		if err = errors.Join(err, failed); err != nil {
			return nil, err
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue // this machine's own request
		}
		return buffer[:n], nil
	}
}

// write sends a frame now or not at all: a delayed one might be sent when it is no longer true.
func (s *socket) write(frame []byte) error {
	var failed error
	err := s.raw.Control(func(fd uintptr) {
		_, failed = unix.Write(int(fd), frame)
	})
	return errors.Join(err, failed)
}

func (s *socket) setDeadline(t time.Time) error { return s.file.SetReadDeadline(t) }

func (s *socket) close() error {
	err := s.file.Close()
	if s.member != nil {
		err = errors.Join(err, s.member.Close())
	}
	return err
}

const (
	loadWord    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	loadByte    = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	ifEqual     = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	returnConst = unix.BPF_RET | unix.BPF_K
	wholeFrame  = 0xffff // the whole frame
)

// filterARP accepts ARP packets with an address as their sender or target (classic BPF; jumps count from the next
// instruction).
func filterARP(address netip.Addr) []unix.SockFilter {
	a := address.As4()
	want := binary.BigEndian.Uint32(a[:])
	return []unix.SockFilter{
		{Code: loadWord, K: 38},
		{Code: ifEqual, K: want, Jt: 2},
		{Code: loadWord, K: 28},
		{Code: ifEqual, K: want, Jf: 1},
		{Code: returnConst, K: wholeFrame},
		{Code: returnConst},
	}
}

// filterNDP accepts neighbour solicitations and advertisements about an address.
func filterNDP(address netip.Addr) []unix.SockFilter {
	a := address.As16()
	out := []unix.SockFilter{
		{Code: loadByte, K: etherLen + 6},
		{Code: ifEqual, K: protoICMPv6, Jf: 12},
		{Code: loadByte, K: etherLen + ip6Len},
		{Code: ifEqual, K: typeNS, Jt: 1},
		{Code: ifEqual, K: typeNA, Jf: 9},
	}
	for i := range 4 {
		out = append(out,
			unix.SockFilter{Code: loadWord, K: etherLen + ip6Len + 8 + uint32(4*i)},
			unix.SockFilter{Code: ifEqual, K: binary.BigEndian.Uint32(a[4*i:]), Jf: uint8(7 - 2*i)})
	}
	return append(out, unix.SockFilter{Code: returnConst, K: wholeFrame}, unix.SockFilter{Code: returnConst})
}
