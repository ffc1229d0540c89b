// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/netns"
)

// Flags of TCP.
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// segment is a TCP segment without options that holds what its sender likes, in a packet.
func segment(from, to netip.AddrPort, flags byte, payload string) []byte {
	tcp := binary.BigEndian.AppendUint16(nil, from.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, to.Port())
	tcp = append(tcp, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flags, 1, 0, 0, 0, 0, 0)
	tcp = append(tcp, payload...)
	a, b := from.Addr().AsSlice(), to.Addr().AsSlice()
	pseudo := binary.BigEndian.AppendUint32(bytes.Join([][]byte{a, b}, nil), uint32(len(tcp)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_TCP)
	binary.BigEndian.PutUint16(tcp[16:], netns.Checksum(append(pseudo, tcp...)))
	if from.Addr().Is6() {
		header := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(tcp)))
		return bytes.Join([][]byte{header, {unix.IPPROTO_TCP, 64}, a, b, tcp}, nil)
	}
	header := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(tcp)))
	return bytes.Join([][]byte{header, {0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}, a, b, tcp}, nil) // the kernel adds the header's checksum
}

// sendRaw sends a packet as it is, from the network namespace that it is called in. Where that is the node's, and the
// packet another program's, it takes the hook at which it meets what IPVS sends on.
func sendRaw(packet []byte) error {
	domain, at := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
	if packet[0]>>4 == 6 {
		domain, at = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, packet, 0, at); err != nil && !errors.Is(err, unix.EPERM) { // so says the hook that drops it
		return err
	}
	return nil
}

const (
	secret = "what no packet may carry any more"
	marker = "what everybody may hear"
)

// overhears says whether a pod that listens to all of TCP hears the secret before the marker.
func (l *lab) overhears(at netip.Addr, expected bool, send func() error) bool {
	l.t.Helper()
	in := netns.ListenPacket(l.t, l.ns[at], fmt.Sprintf("ip%d:tcp", familyOf(at)), at.String())
	return netns.Overhears(l.t, in, secret, marker, expected, send)
}

// TestForgedResetPassesNoPolicy: a refusal of TCP is a reset that the kernel sends for another pod, by the hook where
// IPVS sends on what pods send to Services. A reset that a pod has written passes there no more than anything else that
// it sends: it may hold any data.
func TestForgedResetPassesNoPolicy(t *testing.T) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprint("IPv", family), func(t *testing.T) {
			l := newLab(t, dozen())
			closed, open, server := l.addressOf("x", "p0", family), l.addressOf("z", "p0", family), netip.AddrPortFrom(l.addressOf("y", "p0", family), 80)
			var tab table
			l.policy(t, "x", "a", `{podSelector: {}, policyTypes: [Egress]}`)
			l.apply(&tab)
			if l.overhears(server.Addr(), false, func() error {
				said := segment(netip.AddrPortFrom(closed, 4000), server, flagRST, secret)
				return errors.Join(sendRaw(said), sendRaw(said), sendRaw(segment(netip.AddrPortFrom(open, 4000), server, flagRST, marker)))
			}) {
				t.Error("a pod that may not send anything is heard with a reset")
			}
		})
	}
}

// testResets is TestForgedResetPassesNoPolicy through IPVS itself, which has a connection as soon as one is tried.
func (l *serviceLab) testResets(t *testing.T) {
	for _, family := range []int{4, 6} {
		closed, open, server := l.addressOf("x", "p0", family), l.addressOf("z", "p0", family), l.addressOf("y", "p0", family)
		var tab table
		l.Policies = nil
		l.policy(t, "x", "a", `{podSelector: {}, policyTypes: [Egress]}`)
		l.apply(&tab)
		at := l.at(byClusterIP, connection{closed, server, corev1.ProtocolTCP, 80})
		port := uint16(4000)
		say := func(from netip.Addr, what string) error {
			return l.ns[from].Do(func() error {
				by := netip.AddrPortFrom(from, port)
				return errors.Join(sendRaw(segment(by, at, flagSYN, "")), sendRaw(segment(by, at, flagRST, what)))
			})
		}
		if l.overhears(server, false, func() error {
			port++
			return errors.Join(say(closed, secret), say(closed, secret), say(open, marker))
		}) {
			t.Errorf("IPv%d: a pod that may not send anything is heard with a reset", family)
		}
	}
}
