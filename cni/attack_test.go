// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What a pod may try with the rights that pods have, CAP_NET_RAW among them.

// unguarded is a node whose table is not looked after, so that a test can do without its guard for a while.
func unguarded(t *testing.T, clusterCIDRs ...string) *node {
	n := newNode(t, clusterCIDRs...)
	n.stop()
	n.guard = time.Hour
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr(nodeAddr6)}
	n.start()
	return n
}

func (n *node) guarded(on bool) {
	n.t.Helper()
	if !on {
		netns.NFT(n.t, "flush chain inet coracle guard")
		return
	}
	testenv.NoError(n.t, n.server.applyRules(context.Background()))
}

// hostLinkLocal is the node's IPv6 address on every pod's link: it follows from the Ethernet address.
func hostLinkLocal() string {
	return fmt.Sprintf("fe80::%x:%xff:fe%02x:%x", int(hostMAC[0]^2)<<8|int(hostMAC[1]), hostMAC[2], hostMAC[3], int(hostMAC[4])<<8|int(hostMAC[5]))
}

// TestLinkLocalIsForNeighbours: no pod reaches its node by addresses that no NetworkPolicy knows, whatever families the
// cluster has.
func TestLinkLocalIsForNeighbours(t *testing.T) {
	for _, c := range []struct {
		name       string
		cluster    []string
		cidrs      []string
		dualStack  bool
		nodeGlobal string
	}{
		{name: "IPv4", cluster: []string{"10.42.0.0/16"}, cidrs: []string{"10.42.7.0/24"}},
		{name: "dual-stack", cluster: []string{"10.42.0.0/16", "fd42::/56"}, cidrs: []string{"10.42.7.0/24", "fd42:0:0:7::/64"}, dualStack: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := unguarded(t, c.cluster...).ready(c.cidrs...)
			a := n.pod("aaa")
			serve(t, here{}, "node", "tcp", ":81")
			at := "[" + hostLinkLocal() + "%eth0]:81"
			n.guarded(false)
			eventually(t, func() error { // until addresses of the link are no longer tentative
				got, err := ask(a, at)
				if err == nil && !strings.HasPrefix(got, "node fe80:") {
					err = errors.New(got)
				}
				return err
			})
			n.guarded(true)
			refuse(t, a, "the node by its address of the link", at)
			if c.dualStack {
				expect(t, a, "the node by its own address", "[fd42:0:0:7::1]:81", "node "+a.ips[1])
			}
			expect(t, a, "the node", "10.42.7.1:81", "node "+a.ips[0])
		})
	}
}

// TestPodsAreNoRouters: a router's advertisement of a pod's is not heard, by rule and by sysctl, also where the cluster
// has no IPv6 (CVE-2020-10749).
func TestPodsAreNoRouters(t *testing.T) {
	n := unguarded(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a := n.pod("aaa")
	device := deviceName(key{a.id, "eth0"})
	if got, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + device + "/accept_ra"); err != nil || strings.TrimSpace(string(got)) != "0" {
		t.Errorf("accept_ra is %q, %v", got, err)
	}
	heard := func(what string) int {
		return snmp6(t, device, what)
	}
	const advertisements, solicitations = "Icmp6InRouterAdvertisements", "Icmp6InNeighborSolicits"
	for _, guarded := range []bool{true, false} {
		n.guarded(guarded)
		before := heard(advertisements)
		// What may be sent comes after what may not: when it has arrived so has all.
		eventually(t, func() error {
			was := heard(solicitations)
			if err := a.Do(advertiseAndSolicit); err != nil {
				return err
			}
			for deadline := time.Now().Add(time.Second); heard(solicitations) == was; {
				if time.Now().After(deadline) {
					return errors.New("the solicitation was not heard")
				}
				time.Sleep(time.Millisecond) // between two looks at the counter
			}
			return nil
		})
		if got := heard(advertisements) - before; (got > 0) == guarded {
			t.Errorf("guarded: %v, and %d advertisements were heard", guarded, got)
		}
	}
	// The one that was heard, without the guard, did nothing.
	l := testenv.Must(netlink.LinkByName(device))(t)
	if routes, err := netlink.RouteList(l, netlink.FAMILY_V6); err != nil || strings.Contains(fmt.Sprint(routes), "2001:db8:bad::") {
		t.Errorf("the pod is a router: %v, %v", routes, err)
	}
}

// snmp6 reads a counter of a device of this namespace.
func snmp6(t *testing.T, device, name string) int {
	t.Helper()
	data := testenv.Must(os.ReadFile("/proc/thread-self/net/dev_snmp6/" + device))(t)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, _ := strconv.Atoi(f[1]) // the kernel's
			return n
		}
	}
	t.Fatalf("%s has no counter %s", device, name)
	return 0
}

// advertiseAndSolicit sends, from the pod's address of the link, that the pod is a router and has a network for
// everybody, and then asks for the node.
func advertiseAndSolicit() error {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255)); err != nil {
		return err
	}
	advertisement := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
	advertisement = append(advertisement, 3, 4, 64, 0xc0, 0, 0, 0x70, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0) // a prefix, on the link and for addresses
	advertisement = append(advertisement, netip.MustParseAddr("2001:db8:bad::").AsSlice()...)
	target := netip.MustParseAddr(hostLinkLocal())
	solicitation := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	for _, m := range []struct {
		to   netip.Addr
		text []byte
	}{{netip.MustParseAddr("ff02::1"), advertisement}, {target, solicitation}} {
		if err := unix.Sendto(fd, m.text, 0, &unix.SockaddrInet6{Addr: m.to.As16(), ZoneId: uint32(link.Index)}); err != nil {
			return err
		}
	}
	return nil
}

// TestPodsMakeNoTunnel: a pod's datagram to another node's end of the tunnel would have this node's address there, and
// with that be believed.
func TestPodsMakeNoTunnel(t *testing.T) {
	for _, f := range []struct {
		name, service, out, node string
	}{
		{"IPv4", "10.43.0.9", outsideAddr, nodeAddr}, {"IPv6", "fd43::9", outAddr6, nodeAddr6},
	} {
		t.Run(f.name, func(t *testing.T) {
			n := unguarded(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
			a := n.pod("aaa")
			family := map[string]string{"IPv4": "ip", "IPv6": "ip6"}[f.name]
			netns.NFT(t, "add table inet svc; add chain inet svc pre { type nat hook prerouting priority -100; };"+
				"add rule inet svc pre "+family+" daddr "+f.service+" udp dport 53 dnat "+family+" to "+hostPortOf(f.out, 8472))
			t.Cleanup(func() { netns.NFT(t, "delete table inet svc") })
			if f.name == "IPv6" {
				netns.Route(t, here{}, outAddr6, "fd43::/112")
			}
			in := netns.ListenPacket(t, n.outside, "udp", hostPortOf(f.out, 8472))
			first := func() string {
				t.Helper()
				return firstHeard(t, in, func() error {
					return errors.Join(netns.SendDatagram(a, "", hostPortOf(f.out, 8472), "a pod's"),
						netns.SendDatagram(a, "", hostPortOf(f.service, 53), "a pod's, by a Service"),
						netns.SendDatagram(here{}, "", hostPortOf(f.out, 8472), "the node's"))
				})
			}
			testenv.Equal(t, first(), "the node's", "arrived:")
			netns.NFT(t, "flush chain inet coracle tunnel-out")
			eventually(t, func() error { // of two that different processors send the kernel may deliver the second one first
				if got := first(); got != "a pod's" {
					return fmt.Errorf("unguarded, %q arrived first: this test proves nothing", got)
				}
				return nil
			})
		})
	}
}

func hostPortOf(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// TestPodsCannotUseReservedHostPorts: a pod with the port of the API, of a kubelet or of the tunnel as its host port
// would get what is meant for the node.
func TestPodsCannotUseReservedHostPorts(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	n.o.ReservedPorts = []uint16{6443}
	n.start()
	n.ready("10.42.7.0/24")
	for _, p := range []PortMapping{{HostPort: 6443, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 8472, ContainerPort: 80, Protocol: "udp", HostIP: "192.0.2.1"}} {
		err := n.add(n.sandbox("greedy", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, p))
		wantCode(t, err, 7, "is the cluster's own")
	}
	n.pod("modest", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
}

// TestDeletedTableComesBackAtOnce: another program deletes all tables, and pods could speak from any address until the
// next look, which is an hour away.
func TestDeletedTableComesBackAtOnce(t *testing.T) {
	unguarded(t, "10.42.0.0/16").ready("10.42.7.0/24")
	for range 3 {
		netns.NFT(t, "flush ruleset")
		eventually(t, func() error {
			if text := netns.NFT(t, "list ruleset"); !strings.Contains(text, "fib saddr . iif oif") {
				return fmt.Errorf("the guard is not there:\n%s", text)
			}
			return nil
		})
	}
}

// TestChangedTableComesBack: another program takes single rules or elements out of the table, or adds some, of which
// the kernel's news say too little.
func TestChangedTableComesBack(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
	n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	list := func() string { return netns.NFT(t, "--stateless", "list", "table", "inet", "coracle") }
	before := list()
	testenv.True(t, n.server.rules.intact(), "what was just written is not whole:\n%s", before)
	for _, harm := range []string{
		"flush chain inet coracle guard", "flush table inet coracle", "flush map inet coracle ports4", "flush set inet coracle cluster4",
		"insert rule inet coracle guard accept", "add chain inet coracle foreign",
	} {
		netns.NFT(t, harm)
		eventually(t, func() error {
			if now := list(); now != before {
				return fmt.Errorf("after %s it is\n%s, was\n%s", harm, now, before)
			}
			return nil
		})
	}
}
