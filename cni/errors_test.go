// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// exchange is datagrams that go back and forth between two pods by ports that anybody can guess.
func exchange(t *testing.T, from, to *pod, at, by netip.AddrPort) {
	t.Helper()
	var server, client *net.UDPConn
	if err := to.Do(func() (err error) { server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err }); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := from.Do(func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(by), net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
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

// unreachable says, with whatever its sender likes behind that, that a datagram came to no port.
func unreachable(from, to netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(payload))), 0, 0)
	a, b := from.Addr().AsSlice(), to.Addr().AsSlice()
	if from.Addr().Is6() {
		return bytes.Join([][]byte{{1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, byte(8 + len(payload)), 17, 64}, a, b, udp, []byte(payload)}, nil) // the kernel adds its checksum
	}
	ip := bytes.Join([][]byte{{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0x40, 0, 64, 17, 0, 0}, a, b}, nil)
	binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip))
	out := bytes.Join([][]byte{{3, 3, 0, 0, 0, 0, 0, 0}, ip, udp, []byte(payload)}, nil)
	binary.BigEndian.PutUint16(out[2:], internetChecksum(out))
	return out
}

// TestErrorsOfPodsAreAboutTheirConnections: a pod tells the others by ICMP what went wrong with their connections to
// it, or with its own to them, and reaches no pod by an error about a connection of others, be it one that the kernel
// knows or one that it does not.
func TestErrorsOfPodsAreAboutTheirConnections(t *testing.T) {
	n := unguarded(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
	a, b, c := n.pod("aaa"), n.pod("bbb"), n.pod("ccc")
	for _, kept := range []bool{true, false} {
		if !kept { // without the rules it would be heard
			nft(t, "flush chain inet coracle errors")
		}
		for family, network := range []string{"ip4:icmp", "ip6:ipv6-icmp"} {
			of := func(p *pod, port uint16) netip.AddrPort {
				return netip.AddrPortFrom(netip.MustParseAddr(p.ips[family]), port)
			}
			exchange(t, a, b, of(b, 53), of(a, 4000))
			exchange(t, c, a, of(a, 54), of(c, 4001))
			exchange(t, a, c, of(c, 55), of(a, 4002))
			const said = "what this says"
			type saying struct {
				what  string
				by    *pod
				error []byte
				heard bool
			}
			all := []saying{
				{"the server, about its connection", b, unreachable(of(a, 4000), of(b, 53), said), true},
				{"the client, about its connection", c, unreachable(of(a, 54), of(c, 4001), said), true},
				{"somebody else, about it", c, unreachable(of(a, 4000), of(b, 53), said), !kept},
				{"somebody else, about one that is not known", c, unreachable(of(a, 4009), of(b, 59), said), !kept},
			}
			if family == 1 { // whatever is below 128 is an error (RFC 4443), and to connection tracking as well
				for _, kind := range []byte{0, 5, 100, 127} {
					other := unreachable(of(a, 4000), of(b, 53), said)
					other[0] = kind
					all = append(all, saying{fmt.Sprintf("somebody else, about it, in an error of type %d", kind), c, other, !kept})
				}
			}
			for _, payload := range all {
				if heard := hearsError(t, network, a, payload.by, payload.error, c, unreachable(of(a, 4002), of(c, 55), marker), payload.heard); heard != payload.heard {
					t.Errorf("with rules: %v, family %s: %s: heard: %v", kept, network, payload.what, heard)
				}
			}
		}
		if kept && !n.server.rules.intact() {
			t.Error("what packets have put into the table is taken for another program's work")
		}
	}
}

const marker = "the end"

// tells says whether a pod hears an error, which ends with the words "what this says". Another one, which it hears for
// certain, is sent after it.
func hearsError(t *testing.T, network string, to, from *pod, about []byte, last *pod, known []byte, expected bool) (heard bool) {
	t.Helper()
	listen := func(p *pod) net.PacketConn {
		var l net.PacketConn
		ip := p.ips[map[string]int{"ip4:icmp": 0, "ip6:ipv6-icmp": 1}[network]]
		if err := p.Do(func() (err error) { l, err = net.ListenPacket(network, ip); return err }); err != nil {
			t.Fatal(err)
		}
		return l
	}
	in, out, end := listen(to), listen(from), listen(last)
	defer in.Close()
	defer out.Close()
	defer end.Close()
	buf, deadline := make([]byte, 500), time.Now().Add(2*time.Minute)
	for {
		for _, message := range [][]byte{about, about} {
			if _, err := out.WriteTo(message, in.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := end.WriteTo(known, in.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_ = in.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // then it is sent again: one may be lost
		for {
			m, _, err := in.ReadFrom(buf)
			heard = heard || bytes.Contains(buf[:m], []byte("what this says"))
			if bytes.Contains(buf[:m], []byte(marker)) && (heard || !expected) {
				return heard
			}
			if err == nil {
				continue
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
				t.Errorf("not all that should be is heard: %v", err)
				return heard
			}
			break
		}
	}
}
