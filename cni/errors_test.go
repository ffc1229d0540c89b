// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// exchange is datagrams that go back and forth between two pods by ports that anybody can guess.
func exchange(t *testing.T, from, to *pod, at, by netip.AddrPort) {
	t.Helper()
	var server, client *net.UDPConn
	testenv.NoError(t, to.Do(func() (err error) { server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err }))
	defer server.Close()
	testenv.NoError(t, from.Do(func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(by), net.UDPAddrFromAddrPort(at))
		return err
	}))
	defer client.Close()
	buf := make([]byte, 10)
	eventually(t, func() error { // datagrams may be lost
		for _, c := range []*net.UDPConn{server, client} {
			_ = c.SetDeadline(time.Now().Add(time.Second))
		}
		if _, err := client.Write([]byte("x")); err != nil {
			return err
		}
		_, back, err := server.ReadFromUDPAddrPort(buf)
		if err == nil {
			_, err = server.WriteToUDPAddrPort(buf[:1], back)
		}
		if err == nil {
			_, err = client.Read(buf)
		}
		return err
	})
}

// TestErrorsOfPodsAreAboutTheirConnections: a pod tells the others by ICMP what went wrong with their connections to
// it, or with its own to them, and reaches no pod by an error about a connection of others, be it one that the kernel
// knows or one that it does not.
func TestErrorsOfPodsAreAboutTheirConnections(t *testing.T) {
	n := unguarded(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a, b, c := n.pod("aaa"), n.pod("bbb"), n.pod("ccc")
	for _, kept := range []bool{true, false} {
		if !kept { // without the rules it would be heard
			netns.NFT(t, "flush chain inet coracle errors")
		}
		for family, network := range []string{"ip4:icmp", "ip6:ipv6-icmp"} {
			of := func(p *pod, port uint16) netip.AddrPort {
				return netip.AddrPortFrom(netip.MustParseAddr(p.ips[family]), port)
			}
			exchange(t, a, b, of(b, 53), of(a, 4000))
			exchange(t, c, a, of(a, 54), of(c, 4001))
			exchange(t, a, c, of(c, 55), of(a, 4002))
			type saying struct {
				what  string
				by    *pod
				error []byte
				heard bool
			}
			all := []saying{
				{"the server, about its connection", b, netns.Unreachable(of(a, 4000), of(b, 53), secret), true},
				{"the client, about its connection", c, netns.Unreachable(of(a, 54), of(c, 4001), secret), true},
				{"another sender, about it", c, netns.Unreachable(of(a, 4000), of(b, 53), secret), !kept},
				{"another sender, about one that is not known", c, netns.Unreachable(of(a, 4009), of(b, 59), secret), !kept},
			}
			if family == 1 { // whatever is below 128 is an error (RFC 4443), and to connection tracking as well
				for _, kind := range []byte{0, 5, 100, 127} {
					other := netns.Unreachable(of(a, 4000), of(b, 53), secret)
					other[0] = kind
					all = append(all, saying{fmt.Sprintf("another sender, about it, in an error of type %d", kind), c, other, !kept})
				}
			}
			for _, payload := range all {
				last := netns.Unreachable(of(a, 4002), of(c, 55), marker)
				if heard := hearsError(t, network, a, payload.by, payload.error, c, last, payload.heard); heard != payload.heard {
					t.Errorf("with rules: %v, family %s: %s: heard: %v", kept, network, payload.what, heard)
				}
			}
		}
		testenv.False(t, kept && !n.server.rules.intact(), "what packets have put into the table is taken for another program's work")
	}
}

const secret, marker = "what this says", "the end"

// hearsError says whether a pod hears an error of another one's. A third one sends one after it that is heard for
// certain.
func hearsError(t *testing.T, network string, to, from *pod, about []byte, last *pod, known []byte, expected bool) bool {
	t.Helper()
	listen := func(p *pod) net.PacketConn {
		return netns.ListenPacket(t, p, network, p.ips[map[string]int{"ip4:icmp": 0, "ip6:ipv6-icmp": 1}[network]])
	}
	in, out, end := listen(to), listen(from), listen(last)
	return netns.Overhears(t, in, secret, marker, expected, func() error {
		_, first := out.WriteTo(about, in.LocalAddr())
		_, again := out.WriteTo(about, in.LocalAddr())
		_, mark := end.WriteTo(known, in.LocalAddr())
		return errors.Join(first, again, mark)
	})
}
