// SPDX-License-Identifier: Apache-2.0

package netpolicy

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

// flow is datagrams that go back and forth, with ports that others can guess.
type flow struct{ from, to netip.AddrPort }

func (l *lab) flow(from netip.Addr, port uint16, to netip.Addr, toPort uint16) flow {
	l.t.Helper()
	f := flow{netip.AddrPortFrom(from, port), netip.AddrPortFrom(to, toPort)}
	var c net.Conn
	err := l.ns[from].Do(func() (err error) {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(f.from), net.UDPAddrFromAddrPort(f.to))
		return err
	})
	if err == nil {
		err = ping(c)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return f
}

// answers are the flow's packets in the other direction.
func (f flow) answers() flow { return flow{f.to, f.from} }

// unreachable is the error that one of the flow's packets came to no port; it goes to who has sent that. What follows
// the packet's header is the sender's choice.
func (f flow) unreachable(payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, f.from.Port())
	udp = binary.BigEndian.AppendUint16(udp, f.to.Port())
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(payload))), 0, 0)
	from, to := f.from.Addr().AsSlice(), f.to.Addr().AsSlice()
	if f.from.Addr().Is6() {
		out := []byte{1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, byte(8 + len(payload)), 17, 64}
		return bytes.Join([][]byte{out, from, to, udp, []byte(payload)}, nil) // the kernel adds its checksum
	}
	ip := bytes.Join([][]byte{{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0x40, 0, 64, 17, 0, 0}, from, to}, nil)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	out := bytes.Join([][]byte{{3, 3, 0, 0, 0, 0, 0, 0}, ip, udp, []byte(payload)}, nil)
	binary.BigEndian.PutUint16(out[2:], checksum(out))
	return out
}

func checksum(b []byte) uint16 {
	var n uint32
	for i, c := range b {
		n += uint32(c) << (8 * (1 - i%2))
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}

func icmpOf(a netip.Addr) string {
	if a.Is6() {
		return "ip6:ipv6-icmp"
	}
	return "ip4:icmp"
}

// hears says whether to hears what from says in errors about a flow. It hears those about another one, sent after them,
// for certain. Where more is expected these alone say nothing.
func (l *lab) hears(from, to netip.Addr, about, known flow, expected bool) bool {
	l.t.Helper()
	var in, out net.PacketConn
	listen := func(at netip.Addr) (c net.PacketConn) {
		err := l.ns[at].Do(func() (err error) { c, err = net.ListenPacket(icmpOf(at), at.String()); return err })
		if err != nil {
			l.t.Fatal(err)
		}
		return c
	}
	in, out = listen(to), listen(from)
	defer in.Close()
	defer out.Close()
	deadline, heard, buf := time.Now().Add(patience), false, make([]byte, 500)
	for {
		for _, message := range [][]byte{about.unreachable(secret), about.unreachable(secret), known.unreachable(marker)} {
			if _, err := out.WriteTo(message, &net.IPAddr{IP: to.AsSlice()}); err != nil {
				l.t.Fatal(err)
			}
		}
		_ = in.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // then it is sent again: one may be lost
		for {
			n, _, err := in.ReadFrom(buf)
			if heard = heard || bytes.Contains(buf[:n], []byte(secret)); bytes.Contains(buf[:n], []byte(marker)) && (heard || !expected) {
				return heard
			}
			if err == nil {
				continue
			}
			if expected && time.Now().After(deadline) {
				return heard
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
				l.t.Fatalf("%v hears nothing of %v at all: %v", to, from, err)
			}
			break
		}
	}
}

// TestErrorsAreTheirConnections: an error by ICMP holds what its sender likes. It passes where the connection that it
// is about may, from its ends, and from no other restricted pod.
func TestErrorsAreTheirConnections(t *testing.T) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprint("IPv", family), func(t *testing.T) {
			l := newLab(t, dozen())
			client, server, third := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family), l.addressOf("z", "p0", family)
			var tab table
			l.policy(t, "z", "a", `{podSelector: {}, policyTypes: [Ingress]}`)
			l.policy(t, "y", "a", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{protocol: UDP, port: 53}, {protocol: UDP, port: 80}]}]}`)
			l.apply(&tab)
			names, web, others := l.flow(client, 4000, server, 53), l.flow(client, 4001, server, 80), l.flow(third, 4002, client, 53)
			if !l.hears(server, client, names, web, true) || !l.hears(client, server, names.answers(), web.answers(), true) {
				t.Error("errors about a connection that is allowed do not pass")
			}
			if l.hears(third, client, names, others.answers(), false) {
				t.Error("a restricted pod is heard with errors about a connection that is not its own")
			}
			l.Policies = nil
			l.policy(t, "z", "a", `{podSelector: {}, policyTypes: [Ingress]}`)
			l.policy(t, "y", "a", `{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: 80}]}]}`) // for both families in one rule
			l.apply(&tab)
			if l.hears(server, client, names, web, false) {
				t.Error("the server of a connection that is forbidden now is heard")
			}
			if l.hears(client, server, names.answers(), web.answers(), false) {
				t.Error("the client of a connection that is forbidden now is heard")
			}
		})
	}
}
