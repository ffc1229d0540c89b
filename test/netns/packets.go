// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// ListenPacket receives inside a namespace until the test ends: datagrams, or packets of a network such as "ip4:icmp".
func ListenPacket(t testing.TB, in Doer, network, addr string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	testenv.NoError(t, in.Do(func() (err error) { c, err = net.ListenPacket(network, addr); return err }))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// SendDatagram sends one by UDP, from an IP address, or from the one that the kernel chooses when that is empty.
func SendDatagram(in Doer, from, to, text string) error {
	return in.Do(func() error {
		d := net.Dialer{}
		if from != "" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("udp", to)
		if err != nil {
			return err
		}
		_, err = c.Write([]byte(text))
		return errors.Join(err, c.Close())
	})
}

// Overhears sends again and again, and says whether in receives the secret before the marker, which is sent after it.
// Where the secret is expected the marker alone says nothing: a packet may be lost, and of two that different
// processors send the kernel may deliver the second one first.
func Overhears(t testing.TB, in net.PacketConn, secret, marker string, expected bool, send func() error) (heard bool) {
	t.Helper()
	buf, deadline := make([]byte, 500), time.Now().Add(2*time.Minute)
	for {
		testenv.NoError(t, send())
		_ = in.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // then it is sent again
		for {
			n, _, err := in.ReadFrom(buf)
			heard = heard || bytes.Contains(buf[:n], []byte(secret))
			late := time.Now().After(deadline)
			switch {
			case bytes.Contains(buf[:n], []byte(marker)) && (heard || !expected), expected && late:
				return heard
			case err == nil:
				continue
			case !errors.Is(err, os.ErrDeadlineExceeded) || late:
				t.Fatalf("%v hears nothing at all: %v", in.LocalAddr(), err)
			}
			break
		}
	}
}

// Unreachable is the ICMP error that a datagram of UDP came to no port; it goes to the datagram's sender. What follows
// the datagram's header is the choice of who sends the error.
func Unreachable(from, to netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(payload))), 0, 0)
	a, b := from.Addr().AsSlice(), to.Addr().AsSlice()
	if from.Addr().Is6() {
		out := []byte{1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, byte(8 + len(payload)), 17, 64}
		return bytes.Join([][]byte{out, a, b, udp, []byte(payload)}, nil) // the kernel adds its checksum
	}
	ip := bytes.Join([][]byte{{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0x40, 0, 64, 17, 0, 0}, a, b}, nil)
	binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
	out := bytes.Join([][]byte{{3, 3, 0, 0, 0, 0, 0, 0}, ip, udp, []byte(payload)}, nil)
	binary.BigEndian.PutUint16(out[2:], Checksum(out))
	return out
}

// Checksum is that of IP, UDP, TCP and ICMP (RFC 1071).
func Checksum(b []byte) uint16 {
	var n uint32
	for i, c := range b {
		n += uint32(c) << (8 * (1 - i%2))
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}
