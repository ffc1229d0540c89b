// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// revoking are the policies that forbid the pods of namespace y what those of x have opened.
var revoking = []struct{ name, namespace, spec string }{
	{"by the server", "y", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
	{"by the client", "x", `{podSelector: {}, egress: [{to: [{podSelector: {}}]}], policyTypes: [Egress]}`},
}

// pair is both ends of a TCP connection between pods.
func (l *lab) pair(from, to netip.Addr) (client, server *net.TCPConn) {
	l.t.Helper()
	var at *net.TCPListener
	err := l.ns[to].Do(func() (err error) {
		at, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	defer at.Close()
	err = l.ns[from].Do(func() (err error) {
		client, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), at.Addr().(*net.TCPAddr))
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { client.Close() })
	if server, err = at.AcceptTCP(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { server.Close() })
	return client, server
}

// hears waits for data, or for a refusal.
func hears(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	return refused(err)
}

// forget has conntrack forget all connections.
func forget(t *testing.T) {
	t.Helper()
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
}

// TestBothEndsHear: of a TCP connection that a policy forbids each end hears when it sends something, and the second one does so, too: be it data, or the kernel's probe
// where it only waits, or something that comes when conntrack has forgotten the connection.
func TestBothEndsHear(t *testing.T) {
	l := newLab(t, dozen())
	for _, second := range []struct {
		how   string
		hears func(*testing.T, net.Conn) error
	}{
		{"speaks", func(_ *testing.T, c net.Conn) error { return ping(c) }},
		{"waits", func(_ *testing.T, c net.Conn) error { return hears(c) }},
		{"speaks when all is forgotten", func(t *testing.T, c net.Conn) error { forget(t); return ping(c) }},
	} {
		for _, d := range revoking {
			for _, family := range []int{4, 6} {
				for _, first := range []string{"client", "server"} {
					t.Run(fmt.Sprintf("%s, IPv%d, the %s is first and the other end %s", d.name, family, first, second.how), func(t *testing.T) {
						var tab table
						l.Policies = nil
						l.policy(t, "x", "a", `{podSelector: {}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}`)
						l.apply(&tab)
						one, other := l.pair(l.addressOf("x", "p0", family), l.addressOf("y", "p0", family))
						if first == "server" {
							one, other = other, one
						}
						if err := other.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second}); err != nil {
							t.Fatal(err)
						}
						l.Policies = nil
						l.policy(t, d.namespace, "a", d.spec)
						l.apply(&tab)
						if err := ping(one); !errors.Is(err, errRefused) {
							t.Errorf("who speaks first: %v", err)
						}
						began := time.Now()
						if err := second.hears(t, other); !errors.Is(err, errRefused) {
							t.Errorf("the other end: %v", err)
						}
						t.Logf("the other end heard %v after the first one", time.Since(began))
					})
				}
			}
		}
	}
}

// TestForgotten: a connection that a policy forbids does not go on when conntrack has forgotten it (kernels do so ten seconds after a refusal), whoever speaks first then, and
// though who does may open connections to the other end. Where nobody is restricted one that was forgotten goes on.
func TestForgotten(t *testing.T) {
	l := newLab(t, dozen())
	for _, d := range revoking {
		for _, family := range []int{4, 6} {
			for _, first := range []string{"client", "server"} {
				t.Run(fmt.Sprintf("%s, IPv%d, the %s is first", d.name, family, first), func(t *testing.T) {
					var tab table
					l.Policies = nil
					l.policy(t, "x", "a", `{podSelector: {}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}`)
					l.apply(&tab)
					one, other := l.pair(l.addressOf("x", "p0", family), l.addressOf("y", "p0", family))
					free, open := l.pair(l.addressOf("z", "p0", family), l.addressOf("z", "p1", family))
					if first == "server" {
						one, other, free, open = other, one, open, free
					}
					l.Policies = nil
					l.policy(t, d.namespace, "a", d.spec)
					l.apply(&tab)
					forget(t)
					for _, end := range []net.Conn{one, other} {
						if err := ping(end); !errors.Is(err, errRefused) {
							t.Errorf("an end of the forbidden connection: %v", err)
						}
					}
					for _, ends := range [][2]net.Conn{{free, open}, {open, free}} {
						if _, err := ends[0].Write([]byte("x")); err != nil {
							t.Error(err)
						}
						if err := hears(ends[1]); err != nil {
							t.Errorf("a connection between pods that are not restricted: %v", err)
						}
					}
				})
			}
		}
	}
}
