// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func testAttachment(id string, ips ...string) *attachment {
	k := key{id, "eth0"}
	r := &attachment{ContainerID: k.ContainerID, IfName: k.IfName, HostDevice: "vethcor" + id}
	for _, ip := range ips {
		r.IPs = append(r.IPs, netip.MustParseAddr(ip))
	}
	r.MAC = podMAC(r.IPs[0]).String()
	return r
}

func TestDesiredHostRendersPodObjects(t *testing.T) {
	ports := testAttachment("b", "10.42.7.3", "fd42::3")
	ports.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}}
	for _, c := range []struct {
		name string
		in   hostInput
		want string
	}{
		{"IPv4, no pods", hostInput{bridge: "coracle0", mtu: 1400, podCIDRs: prefixes("10.42.7.0/24"), serviceCIDRs: prefixes("10.43.0.0/16", "fd43::/112")}, `
sysctl net/ipv4/ip_forward 1
link coracle0 bridge mtu 1400 up
address 10.42.7.1 dev coracle0
route 10.43.0.0/16 dev coracle0 src 10.42.7.1
`},
		{"both families, two pods", hostInput{
			bridge: "coracle0", mtu: 1500, podCIDRs: prefixes("10.42.7.0/24", "fd42::/64"), serviceCIDRs: prefixes("10.43.0.0/16", "fd43::/112"),
			advertised: []string{"uplink"}, pods: []*attachment{testAttachment("a", "10.42.7.2"), ports},
		}, `
sysctl net/ipv4/ip_forward 1
sysctl net/ipv6/conf/uplink/accept_ra 2
sysctl net/ipv6/conf/all/forwarding 1
link coracle0 bridge mtu 1500 up
address 10.42.7.1 dev coracle0
address fd42::1 dev coracle0
route 10.43.0.0/16 dev coracle0 src 10.42.7.1
route fd43::/112 dev coracle0 src fd42::1
link vethcora veth mtu 1500 up
sysctl net/ipv6/conf/vethcora/accept_ra 0
neighbour 10.42.7.2 dev vethcora lladdr 0a:58:0a:2a:07:02
route 10.42.7.2/32 dev vethcora src 10.42.7.1
link vethcorb veth mtu 1500 up
sysctl net/ipv4/conf/vethcorb/route_localnet 1
sysctl net/ipv6/conf/vethcorb/accept_ra 0
neighbour 10.42.7.3 dev vethcorb lladdr 0a:58:0a:2a:07:03
route 10.42.7.3/32 dev vethcorb src 10.42.7.1
neighbour fd42::3 dev vethcorb lladdr 0a:58:0a:2a:07:03
route fd42::3/128 dev vethcorb src fd42::1
`},
		{"a pod of a family that the node has lost", hostInput{bridge: "coracle0", mtu: 1500, podCIDRs: prefixes("10.42.7.0/24"), pods: []*attachment{testAttachment("a", "fd42::2")}}, `
sysctl net/ipv4/ip_forward 1
link coracle0 bridge mtu 1500 up
address 10.42.7.1 dev coracle0
link vethcora veth mtu 1500 up
sysctl net/ipv6/conf/vethcora/accept_ra 0
neighbour fd42::2 dev vethcora lladdr 0a:58:00:00:00:02
route fd42::2/128 dev vethcora
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, w := range desiredHost(c.in) {
				got = append(got, w.String())
			}
			if g, w := strings.Join(got, "\n"), strings.TrimSpace(c.want); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}

func TestHostDriftIsRepaired(t *testing.T) {
	in := hostInput{bridge: "coracle0", mtu: 1500, podCIDRs: prefixes("10.42.7.0/24"), serviceCIDRs: prefixes("10.43.0.0/16"), pods: []*attachment{testAttachment("a", "10.42.7.2")}}
	asWanted := func(change func(put func(object), drop func(id string))) map[string]object {
		have := map[string]object{}
		put := func(o object) { have[o.id()] = o }
		for _, w := range desiredHost(in) {
			put(w.object)
		}
		change(put, func(id string) {
			if _, ok := have[id]; !ok {
				t.Fatalf("no %s", id)
			}
			delete(have, id)
		})
		return have
	}
	for _, c := range []struct {
		name   string
		change func(put func(object), drop func(string))
		want   string
	}{
		{"nothing to do", func(func(object), func(string)) {}, ""},
		{"the bridge is down and has another MTU", func(put func(object), _ func(string)) {
			put(link{name: "coracle0", kind: kindBridge, mtu: 1400, up: false})
		},
			"+ link coracle0 bridge mtu 1500 up"},
		{"a route leads elsewhere", func(put func(object), _ func(string)) {
			put(route{dst: netip.MustParsePrefix("10.42.7.2/32"), device: "vethcorold", src: netip.MustParseAddr("10.42.7.1")})
		}, "+ route 10.42.7.2/32 dev vethcora src 10.42.7.1"},
		{"another program's hands", func(put func(object), drop func(string)) {
			drop("address 10.42.7.1 dev coracle0")
			drop("route 10.43.0.0/16")
			put(sysctl{"net/ipv4/ip_forward", "0"})
			put(neighbour{"vethcora", netip.MustParseAddr("10.42.7.2"), "02:00:00:00:00:01"})
		}, "+ sysctl net/ipv4/ip_forward 1, + address 10.42.7.1 dev coracle0, + route 10.43.0.0/16 dev coracle0 src 10.42.7.1, " +
			"+ neighbour 10.42.7.2 dev vethcora lladdr 0a:58:0a:2a:07:02"},
		{"leftovers", func(put func(object), _ func(string)) {
			put(link{name: "vethcorold", kind: kindVeth, mtu: 1500, up: true})
			put(address{"coracle0", netip.MustParseAddr("10.42.9.1")})
			put(route{dst: netip.MustParsePrefix("10.42.9.2/32"), device: "vethcorold", src: netip.MustParseAddr("10.42.9.1")})
			put(neighbour{"vethcorold", netip.MustParseAddr("10.42.9.2"), "02:00:00:00:00:01"})
		}, "- route 10.42.9.2/32 dev vethcorold src 10.42.9.1, - neighbour 10.42.9.2 dev vethcorold lladdr 02:00:00:00:00:01, " +
			"- address 10.42.9.1 dev coracle0, - link vethcorold veth mtu 1500 up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ensure, remove := difference(desiredHost(in), asWanted(c.change))
			var got []string
			for _, w := range ensure {
				got = append(got, "+ "+w.String())
			}
			for _, o := range remove {
				got = append(got, "- "+o.String())
			}
			testenv.Equal(t, strings.Join(got, ", "), c.want, "")
		})
	}
}

// TestKernelMatchesDesired makes every kind of object, reads it back, changes nothing the second time, and prunes
// what is coracle's and not desired, and no more.
func TestKernelMatchesDesired(t *testing.T) {
	netns.Require(t)
	netns.NewOutside(t)
	pod := testAttachment("a", "10.42.7.2", "fd42::2")
	pod.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}}
	for _, name := range []string{pod.HostDevice, "vethcorold", "vethother"} {
		addVeth(t, name)
	}
	in := hostInput{bridge: "test0", mtu: 1400, podCIDRs: prefixes("10.42.7.0/24", "fd42::/64"), serviceCIDRs: prefixes("10.43.0.0/16", "fd43::/112"), pods: []*attachment{pod}}
	in.advertised = routerAdvertised(in.bridge)
	if !slices.Contains(in.advertised, "uplink") || slices.Contains(in.advertised, pod.HostDevice) {
		t.Errorf("advertised %v: want the host's own devices", in.advertised)
	}
	foreignRoutes := []string{"10.77.0.0/16 dev vethcora", "10.78.0.0/16 dev uplink"} // of other programs: not our protocol
	for _, s := range foreignRoutes {
		addRoute(t, s, 0)
	}
	addRoute(t, "10.79.0.0/16 dev uplink", routeProtocol) // of an earlier run
	desired := desiredHost(in)
	testenv.True(t, pass(t, in.bridge, desired) != "", "nothing was done")
	in.advertised = routerAdvertised(in.bridge) // a leftover's far end went with it
	desired = desiredHost(in)
	testenv.Equal(t, pass(t, in.bridge, desired), "", "done again:")
	testenv.Fails(t, testenv.Err(netlink.LinkByName("vethcorold")), "the leftover device is still there")
	testenv.Check(t, testenv.Err(netlink.LinkByName("vethother")), "another program's device is gone")
	routes := routesOf(t)
	for _, s := range foreignRoutes {
		testenv.True(t, slices.Contains(routes, s), "another program's route %s is gone; there are %v", s, routes)
	}
	testenv.False(t, slices.Contains(routes, "10.79.0.0/16 dev uplink"), "an earlier run's route is still there")

	in.podCIDRs, in.serviceCIDRs, in.pods = prefixes("10.42.9.0/24"), prefixes("10.43.0.0/16"), nil
	desired = desiredHost(in)
	pass(t, in.bridge, desired)
	testenv.Equal(t, pass(t, in.bridge, desired), "", "done again after the change:")
	have := testenv.Must(newKernel().observe(in.bridge, nil))(t)
	for id := range have {
		testenv.True(t, !strings.Contains(id, "10.42.7") && !strings.Contains(id, "fd4") && !strings.Contains(id, devicePrefix),
			"%s is left", id)
	}
	for _, name := range []string{in.bridge, "vethother"} {
		testenv.Check(t, removeDevice(name))
	}
}

// pass brings the kernel to what is desired and says what that took.
func pass(t *testing.T, bridge string, desired []desiredObject) string {
	t.Helper()
	var sysctls []sysctl
	for _, w := range desired {
		if s, ok := w.object.(sysctl); ok {
			sysctls = append(sysctls, s)
		}
	}
	k := newKernel()
	have := testenv.Must(k.observe(bridge, sysctls))(t)
	ensure, remove := difference(desired, have)
	var did []string
	for _, w := range ensure {
		testenv.Check(t, k.ensure(w.object))
		did = append(did, w.String())
	}
	for _, o := range remove {
		testenv.Check(t, k.remove(o))
		did = append(did, "- "+o.String())
	}
	return strings.Join(did, ", ")
}

func addVeth(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = name, net.FlagUp
	testenv.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name[4:]}))
}

// addRoute takes "10.77.0.0/16 dev NAME".
func addRoute(t *testing.T, s string, protocol netlink.RouteProtocol) {
	t.Helper()
	dst, device, _ := strings.Cut(s, " dev ")
	l, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK, Protocol: protocol})
	}
	testenv.NoError(t, err)
}

func routesOf(t *testing.T) []string {
	t.Helper()
	routes := testenv.Must(netlink.RouteList(nil, netlink.FAMILY_V4))(t)
	var out []string
	for _, r := range routes {
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			out = append(out, fmt.Sprintf("%s dev %s", r.Dst, l.Attrs().Name))
		}
	}
	return out
}

// TestRemovedPodRoutesAreRepaired: whatever another program takes away of a pod's way comes back.
func TestRemovedPodRoutesAreRepaired(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a := n.pod("aaa")
	serve(t, a, "a", "tcp", ":80")
	device := testenv.Must(netlink.LinkByName(deviceName(key{a.id, "eth0"})))(t)
	ip := netip.MustParseAddr(a.ips[0])
	for what, harm := range map[string]func() error{
		"the pod's route": func() error {
			return netlink.RouteDel(&netlink.Route{Dst: hostNet(ip), LinkIndex: device.Attrs().Index, Scope: netlink.SCOPE_LINK})
		},
		"the pod's neighbour": func() error { return netlink.NeighDel(permanentNeighbour(device.Attrs().Index, ip, nil)) },
		"the pod's device":    func() error { return netlink.LinkSetDown(device) },
		"the bridge":          func() error { return removeDevice(Bridge) },
		"forwarding":          func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) },
	} {
		testenv.NoError(t, harm(), "%s", what)
		eventually(t, func() error {
			got, err := ask(here{}, a.ips[0]+":80")
			fwd, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
			neighbours, _ := netlink.NeighList(device.Attrs().Index, netlink.FAMILY_V4)
			known := len(neighbours) == 1 && neighbours[0].State == netlink.NUD_PERMANENT
			if err == nil && (got != "a 10.42.7.1" || string(fwd) != "1\n" || !known) {
				err = fmt.Errorf("%s: %q answers, ip_forward %q, neighbours %v", what, got, fwd, neighbours)
			}
			return err
		})
	}
}
