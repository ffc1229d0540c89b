// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	isLocal    = "is local or broadcast to this machine's kernel"
	isResolver = "is a resolver's of this machine"
)

func prefix(text string) *net.IPNet {
	p := netip.MustParsePrefix(text)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// TestHostsRoutesAndResolversAreFound: what a machine needs itself is found in its routes and resolvers.
func TestHostsRoutesAndResolversAreFound(t *testing.T) {
	const device = 7
	ip := func(text string) net.IP { return netip.MustParseAddr(text).AsSlice() }
	h := hostNetworkOf([]netlink.Route{
		{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Dst: prefix("192.0.2.1/32")},
		{Type: unix.RTN_BROADCAST, Table: unix.RT_TABLE_LOCAL, Dst: prefix("192.0.2.255/32")},
		{Type: unix.RTN_ANYCAST, Table: unix.RT_TABLE_LOCAL, Dst: prefix("2001:db8::/128")},
		{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Dst: prefix("198.51.100.0/24")},
		{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Dst: prefix("203.0.113.1/32"), LinkIndex: device},
		{Type: unix.RTN_LOCAL, Table: 100, Dst: prefix("0.0.0.0/0")}, // of a transparent proxy
		{Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN, Dst: prefix("192.0.2.0/24")},
		{Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN, Gw: ip("192.0.2.2")},
		{Type: unix.RTN_UNICAST, Table: 200, Dst: prefix("0.0.0.0/0"), MultiPath: []*netlink.NexthopInfo{{Gw: ip("192.0.2.3")}, {Via: &netlink.Via{Addr: ip("2001:db8::3")}}}},
	}, device, []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fe80::53%eth0")})
	for address, want := range map[string]string{
		"192.0.2.1": isLocal, "192.0.2.255": isLocal, "2001:db8::": isLocal, "198.51.100.77": isLocal, "192.0.2.2": isGateway, "192.0.2.3": isGateway, "2001:db8::3": isGateway,
		"192.0.2.53": isResolver, "fe80::53": isResolver, "203.0.113.1": "", "192.0.2.9": "", "2001:db8::9": "",
	} {
		testenv.Equal(t, h.reason(netip.MustParseAddr(address)), want, "%s", address)
	}
}

// TestHostNetworkOfTheKernel: a second network card's address, its broadcast address, the way out and the resolver are
// found; what Services have on the device of IPVS is not.
func TestHostNetworkOfTheKernel(t *testing.T) {
	ns := netns.New(t)
	file := filepath.Join(t.TempDir(), "resolv.conf")
	testenv.NoError(t, os.WriteFile(file, []byte("nameserver 10.99.0.53\n"), 0o600))
	ns.Link(t, "hosttest0", "second", nil, []string{"10.99.0.7/24"})
	ns.Link(t, "hosttest1", nft.IPVSDevice, nil, []string{"203.0.113.7/32"})
	var h hostNetwork
	testenv.NoError(t, ns.Do(func() (err error) {
		if err := netns.AddRoute("0.0.0.0/0", "10.99.0.1"); err != nil {
			return err
		}
		h, err = readHostNetwork(file)
		return err
	}))
	for address, want := range map[string]string{
		"10.99.0.7": isLocal, "10.99.0.255": isLocal, "10.99.0.1": isGateway, "10.99.0.53": isResolver, "203.0.113.7": "", "10.99.0.8": "",
	} {
		testenv.Equal(t, h.reason(netip.MustParseAddr(address)), want, "%s", address)
	}
}

// TestNoServiceAtRoutersAddress: a pool of load balancer addresses that has the router's gives it to no Service on any
// node: nodes and pods go on to reach the router. A node may be a router, as with host-gw, and keeps its addresses.
func TestNoServiceAtRoutersAddress(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}}
	p := frontOf(t, h)
	x := p.o.externals
	x.host = nil
	now := hostNetworkOf(nil, -1, nil)
	x.readHost = func() (hostNetwork, error) { return now, nil }
	router := func(ip string) netlink.Route {
		return netlink.Route{Type: unix.RTN_UNICAST, Gw: netip.MustParseAddr(ip).AsSlice()}
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: "dns"}}
	svc.Spec.Ports = []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.77.0.1"}, {IP: netns.NodeIP}, {IP: "10.77.0.53"}}
	p.services(nil, svc)
	testenv.True(t, x.judgesByHost(), "its load balancer addresses are not known")
	for _, step := range []struct {
		what   string
		routes []netlink.Route
		want   []string
	}{
		{"no routes", nil, []string{"10.77.0.1", netns.NodeIP, "10.77.0.53"}},
		{"a router", []netlink.Route{router("10.77.0.1"), router(netns.NodeIP)}, []string{netns.NodeIP, "10.77.0.53"}},
		{"another router", []netlink.Route{router("10.77.0.2")}, []string{"10.77.0.1", netns.NodeIP, "10.77.0.53"}},
	} {
		now = hostNetworkOf(step.routes, -1, []netip.Addr{netip.MustParseAddr("10.77.0.53")})
		p.refreshHost()
		testenv.Equal(t, fmt.Sprint(ingressOf(h.now["dns"])), fmt.Sprint(step.want), "%s", step.what)
	}
	svc = svc.DeepCopy()
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: netns.NodeIP, Ports: []corev1.PortStatus{{Port: 53, Protocol: corev1.ProtocolUDP}}}}
	p.services(h.now["dns"], svc)
	testenv.False(t, x.judgesByHost(), "routes are read for a Service that has nodes' addresses alone")
}

// TestNoServiceAtHostsOwnAddresses: no Service is served at what the machine itself needs, as soon as that is read;
// load balancers' addresses may be local to the machine.
func TestNoServiceAtHostsOwnAddresses(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}}
	p := frontOf(t, h)
	x := p.o.externals
	x.host = nil
	var now hostNetwork
	var broken error
	x.readHost = func() (hostNetwork, error) { return now, broken }
	testenv.False(t, x.judgesByHost(), "there are external IPs without a Service")
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: "dns"}}
	svc.Spec.ExternalIPs = []string{"10.77.0.1", "10.99.0.7", "203.0.113.7"}
	svc.Spec.Ports = []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.99.0.7"}}
	p.services(nil, svc)
	testenv.True(t, x.judgesByHost(), "its external IPs are not known")
	second := netlink.Route{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Dst: prefix("10.99.0.7/32")}
	for _, step := range []struct {
		what     string
		host     hostNetwork
		err      error
		changed  bool
		external []string
	}{
		{"it could not be read yet", hostNetwork{}, os.ErrPermission, false, nil},
		{"nothing", hostNetwork{}, nil, true, svc.Spec.ExternalIPs},
		{"a resolver", hostNetworkOf(nil, -1, []netip.Addr{netip.MustParseAddr("10.77.0.1")}), nil, true, []string{"10.99.0.7", "203.0.113.7"}},
		{"it cannot be read", hostNetwork{}, os.ErrPermission, false, []string{"10.99.0.7", "203.0.113.7"}},
		{"a second network card", hostNetworkOf([]netlink.Route{second}, -1, []netip.Addr{netip.MustParseAddr("10.77.0.1")}), nil, true, []string{"203.0.113.7"}},
		{"the same", hostNetworkOf([]netlink.Route{second}, -1, []netip.Addr{netip.MustParseAddr("10.77.0.1")}), nil, false, []string{"203.0.113.7"}},
		{"the resolver is another one", hostNetworkOf([]netlink.Route{second}, -1, nil), nil, true, []string{"10.77.0.1", "203.0.113.7"}},
	} {
		now, broken = step.host, step.err
		changed := p.refreshHost()
		if got := h.now["dns"]; changed != step.changed || !slices.Equal(got.Spec.ExternalIPs, step.external) || !slices.Equal(ingressOf(got), []string{"10.99.0.7"}) || h.mistakes > 0 {
			t.Errorf("%s: it has %v and %v, want %v; changed: %v", step.what, got.Spec.ExternalIPs, ingressOf(got), step.external, changed)
		}
	}
}
