// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"net"
	"net/netip"
	"testing"
)

func TestPortTaken(t *testing.T) {
	for _, c := range []struct {
		name, listen, ask string
	}{
		{"at the address", "127.0.0.1:0", "127.0.0.1"},
		{"at all addresses", "0.0.0.0:0", "127.0.0.1"},
		{"at all addresses of both families", "[::]:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", c.listen)
			if err != nil {
				t.Fatal(err)
			}
			tcp, ok := l.Addr().(*net.TCPAddr)
			if !ok {
				t.Fatal(l.Addr())
			}
			at := netip.AddrPortFrom(netip.MustParseAddr(c.ask), uint16(tcp.Port))
			if taken, err := portTaken(at); err != nil || !taken {
				t.Errorf("while somebody listens: %v, %v", taken, err)
			}
			conn, err := net.Dial("tcp", at.String()) // it ends on the listener's side first, which is remembered for a minute
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			accepted.Close()
			conn.Close()
			l.Close()
			if taken, err := portTaken(at); err != nil || taken {
				t.Errorf("when nobody does any more: %v, %v", taken, err)
			}
		})
	}
}
