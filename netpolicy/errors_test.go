// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/coracle-k8s/coracle/test/netns"

	"github.com/coracle-k8s/coracle/test/testenv"
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
	testenv.NoError(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return f
}

// answers are the flow's packets in the other direction.
func (f flow) answers() flow { return flow{f.to, f.from} }

func icmpOf(a netip.Addr) string {
	if a.Is6() {
		return "ip6:ipv6-icmp"
	}
	return "ip4:icmp"
}

// hears says whether to hears what from says in errors about a flow. It hears those about another one, sent after them,
// for certain.
func (l *lab) hears(from, to netip.Addr, about, known flow, expected bool) bool {
	l.t.Helper()
	listen := func(at netip.Addr) net.PacketConn { return netns.ListenPacket(l.t, l.ns[at], icmpOf(at), at.String()) }
	in, out := listen(to), listen(from)
	said, mark := netns.Unreachable(about.from, about.to, secret), netns.Unreachable(known.from, known.to, marker)
	return netns.Overhears(l.t, in, secret, marker, expected, func() (err error) {
		for _, message := range [][]byte{said, said, mark} {
			_, failed := out.WriteTo(message, in.LocalAddr())
			err = errors.Join(err, failed)
		}
		return err
	})
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
			testenv.False(t, l.hears(server, client, names, web, false), "the server of a connection that is forbidden now is heard")
			testenv.True(t, !l.hears(client, server, names.answers(), web.answers(), false),
				"the client of a connection that is forbidden now is heard")
		})
	}
}
