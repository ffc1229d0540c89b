// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// revoking are the policies that forbid the pods of namespace y what those of x have opened.
var revoking = []struct{ name, namespace, spec string }{
	{"by the server", "y", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
	{"by the client", "x", `{podSelector: {}, egress: [{to: [{podSelector: {}}]}], policyTypes: [Egress]}`},
}

// pair is both ends of a TCP connection between pods, or of one with the node.
func (l *lab) pair(from, to netip.Addr) (client, server *net.TCPConn) {
	l.t.Helper()
	var at *net.TCPListener
	err := l.in(to).Do(func() (err error) {
		at, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, 0)))
		return err
	})
	testenv.NoError(l.t, err)
	defer at.Close()
	err = l.in(from).Do(func() (err error) {
		client, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), at.Addr().(*net.TCPAddr))
		return err
	})
	testenv.NoError(l.t, err)
	l.t.Cleanup(func() { client.Close() })
	server, err = at.AcceptTCP()
	testenv.NoError(l.t, err)
	l.t.Cleanup(func() { server.Close() })
	return client, server
}

// hears waits for data, or for a refusal.
func hears(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	return refused(err)
}

// flushConntrack removes all connections from conntrack.
func flushConntrack(t *testing.T) {
	t.Helper()
	testenv.NoError(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
}

// TestBothEndsOfForbiddenConnectionAreReset: of a TCP connection that a policy forbids each end hears when it sends
// something, and the second one does so, too: be it data, or the kernel's probe where it only waits, or something that
// comes when conntrack has forgotten the connection.
func TestBothEndsOfForbiddenConnectionAreReset(t *testing.T) {
	l := newLab(t, dozen())
	for _, second := range []struct {
		how   string
		hears func(*testing.T, net.Conn) error
	}{
		{"speaks", func(_ *testing.T, c net.Conn) error { return ping(c) }},
		{"waits", func(_ *testing.T, c net.Conn) error { return hears(c) }},
		{"speaks when all is forgotten", func(t *testing.T, c net.Conn) error { flushConntrack(t); return ping(c) }},
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
						testenv.NoError(t,
							other.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second}))
						l.Policies = nil
						l.policy(t, d.namespace, "a", d.spec)
						l.apply(&tab)
						testenv.ErrorIs(t, ping(one), errRefused, "who speaks first")
						began := time.Now()
						testenv.ErrorIs(t, second.hears(t, other), errRefused, "the other end")
						t.Logf("the other end heard %v after the first one", time.Since(began))
					})
				}
			}
		}
	}
}

// TestRevokedConnectionStaysClosedWithoutConntrack: a connection that a policy forbids does not go on when conntrack
// has forgotten it (kernels do so ten seconds after a refusal), whichever end sends first then, and though who does may
// open connections to the other end. Where no pod is restricted one that was forgotten goes on.
func TestRevokedConnectionStaysClosedWithoutConntrack(t *testing.T) {
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
					flushConntrack(t)
					for _, end := range []net.Conn{one, other} {
						testenv.ErrorIs(t, ping(end), errRefused, "an end of the forbidden connection")
					}
					for _, ends := range [][2]net.Conn{{free, open}, {open, free}} {
						testenv.Check(t, testenv.Err(ends[0].Write([]byte("x"))))
						testenv.Check(t, hears(ends[1]), "a connection between pods that are not restricted")
					}
				})
			}
		}
	}
}

// TestForbiddenConnectionsWithNodeEnd: likewise between a pod and the node, to which the pod had opened it and may not
// any more. What the node may open, which is all, and what a pod may whose policies say nothing of what it opens, goes
// on.
func TestForbiddenConnectionsWithNodeEnd(t *testing.T) {
	l := newLab(t, dozen())
	for family, node := range map[int]netip.Addr{4: netip.MustParseAddr("192.0.2.1"), 6: netip.MustParseAddr("2001:db8::1")} {
		t.Run(fmt.Sprint("IPv", family), func(t *testing.T) {
			l.ofNode(t, node)
			closed, reached := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family)
			for _, first := range []string{"node", "pod"} {
				t.Run("the "+first+" is first", func(t *testing.T) {
					var tab table
					l.Policies = nil
					l.policy(t, "x", "a", `{podSelector: {}, egress: [{}], policyTypes: [Egress]}`)
					l.apply(&tab)
					pod, own := l.pair(closed, node)
					reachedBy, by := l.pair(reached, node)
					opened, opens := l.pair(node, reached)
					l.Policies = nil
					l.policy(t, "x", "a", `{podSelector: {}, policyTypes: [Egress]}`)
					l.policy(t, "y", "a", `{podSelector: {}, policyTypes: [Ingress]}`)
					l.apply(&tab)
					flushConntrack(t)
					one, other := own, pod
					ends := [][2]net.Conn{{by, reachedBy}, {opened, opens}}
					if first == "pod" {
						one, other = pod, own
						ends = [][2]net.Conn{{reachedBy, by}, {opens, opened}}
					}
					for _, c := range []net.Conn{one, other} { // one of them has heard of it already, maybe
						_, _ = c.Write([]byte("x"))
					}
					for _, c := range []net.Conn{one, other} {
						if err := hears(c); !errors.Is(err, errRefused) {
							t.Errorf("the end at %v of the forbidden connection: %v", c.LocalAddr(), err)
						}
					}
					for _, e := range ends {
						for _, way := range [][2]net.Conn{{e[0], e[1]}, {e[1], e[0]}} {
							testenv.Check(t, testenv.Err(way[0].Write([]byte("x"))))
							testenv.Check(t, hears(way[1]), "from %v to %v", way[0].LocalAddr(), way[1].LocalAddr())
						}
					}
				})
			}
		})
	}
}

// TestNoWayRoundSYN: a pod that may open no connection says nothing to one that may open connections to it, whichever
// segments that one sends first without a SYN alone. A connection that it does open is answered.
func TestNoWayRoundSYN(t *testing.T) {
	l := newLab(t, dozen())
	var tab table
	l.policy(t, "x", "a", `{podSelector: {}, policyTypes: [Egress]}`)
	l.apply(&tab)
	port := uint16(4000)
	for _, family := range []int{4, 6} {
		closed, server, open := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family), l.addressOf("z", "p0", family)
		for _, c := range []struct {
			first string
			flags []byte
			want  bool
		}{
			{"nothing", nil, false},
			{"SYN and ACK", []byte{flagSYN | flagACK}, false},
			{"ACK", []byte{flagACK}, false},
			{"FIN and ACK", []byte{flagFIN | flagACK}, false},
			{"RST", []byte{flagRST}, false},
			{"no flag", []byte{0}, false},
			{"SYN and FIN", []byte{flagSYN | flagFIN}, false},
			{"SYN and RST", []byte{flagSYN | flagRST}, false},
			{"ACK, then SYN and ACK", []byte{flagACK, flagSYN | flagACK}, false},
			{"SYN", []byte{flagSYN}, true},
		} {
			if got := l.overhears(server, c.want, func() error {
				port++
				at, from := netip.AddrPortFrom(server, port), netip.AddrPortFrom(closed, 80)
				errs := []error{l.ns[server].Do(func() error {
					var errs []error
					for _, f := range c.flags {
						errs = append(errs, sendRaw(segment(at, from, f, "")))
					}
					return errors.Join(errs...)
				})}
				errs = append(errs, l.ns[closed].Do(func() error {
					return errors.Join(sendRaw(segment(from, at, flagSYN|flagACK, secret)), sendRaw(segment(from, at, flagACK, secret)), sendRaw(segment(from, at, flagSYN, secret)))
				}))
				return errors.Join(append(errs, l.ns[open].Do(func() error { return sendRaw(segment(netip.AddrPortFrom(open, 80), at, flagSYN, marker)) }))...)
			}); got != c.want {
				t.Errorf("IPv%d, the other pod sends %s first: what it should not hear was heard: %v", family, c.first, got)
			}
		}
	}
}

// ofNode gives the node an address until the test ends. An IPv6 address without IFA_F_NODAD is tentative at first, and
// a bind to it fails until the kernel's own work has looked at it.
func (l *lab) ofNode(t *testing.T, ip netip.Addr) {
	t.Helper()
	lo := testenv.Must(netlink.LinkByName("lo"))(t)
	a := &netlink.Addr{IPNet: netlink.NewIPNet(ip.AsSlice()), Flags: unix.IFA_F_NODAD}
	testenv.NoError(t, netlink.AddrReplace(lo, a))
	t.Cleanup(func() { _ = netlink.AddrDel(lo, a) })
}

// in is where an address is: in a pod, with the node's ingress proxy, or else on the node.
func (l *lab) in(ip netip.Addr) netns.Doer {
	if ns := l.ns[ip]; ns != nil {
		return ns
	}
	if slices.Contains(proxySources, ip) {
		return asProxy{}
	}
	return netns.Own{}
}
