// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// slowPolicies have pods wait for their rules until the test lets them go on.
type slowPolicies struct{ called, goOn chan struct{} }

func (p slowPolicies) Admit(ctx context.Context, _ Sandbox) error {
	for _, c := range []chan struct{}{p.called, p.goOn} {
		select {
		case c <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (p slowPolicies) Release(string) {}

// changing is a node alone that receives its back end by to, which returns when all is done for that.
func changing(n *node, backend string) (to func(string)) {
	backends := make(chan string)
	n.o.Backend, n.o.Backends = backend, backends
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(nodeAddr)}
	return func(name string) {
		backends <- name
		backends <- name // is taken when all was done for the first
	}
}

// TestPodAttachedDuringChangeUsesNewBackend: a pod that is being attached while the node changes its back end has the
// new one's sizes, and no host port that is the new one's.
func TestPodAttachedDuringChangeUsesNewBackend(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	policies := slowPolicies{make(chan struct{}), make(chan struct{})}
	n.o.Policies = policies
	to := changing(n, clusterconfig.NetworkHostGateway)
	n.start()
	n.ready("10.42.7.0/24")

	attach := func(p *pod) error {
		t.Helper()
		to(clusterconfig.NetworkHostGateway)
		done := make(chan error, 1) // one: its goroutine need not wait
		go func() { done <- n.add(p) }()
		<-policies.called
		to(clusterconfig.NetworkVXLAN)
		<-policies.goOn
		return <-done
	}
	p := n.sandbox("aaa")
	testenv.NoError(t, attach(p))
	inPod := 0
	testenv.NoError(t, p.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			inPod = l.Attrs().MTU
		}
		return err
	}))
	host := testenv.Must(netlink.LinkByName(deviceName(key{"aaa", "eth0"})))(t)
	if inPod != 1450 || host.Attrs().MTU != 1450 {
		t.Errorf("the pod's device has %d, the host's %d, want 1450", inPod, host.Attrs().MTU)
	}

	p = n.sandbox("bbb", PortMapping{HostPort: clusterconfig.VXLANPort, ContainerPort: 53, Protocol: "udp"})
	wantCode(t, attach(p), wire.CodeInvalidConfig, "the host port 8472 is the cluster's own")
}

// TestResizeIsTriedAgain: a pod whose size of packets cannot be changed with the back end gets it once that is
// possible, and is logged once meanwhile.
func TestResizeIsTriedAgain(t *testing.T) {
	n := unguarded(t, "10.42.0.0/16")
	n.stop()
	to := changing(n, clusterconfig.NetworkHostGateway)
	n.start()
	n.ready("10.42.7.0/24")
	n.pod("bbb")
	p := n.pod("aaa")
	gateways := func(change func(*netlink.Route) error) (defaults []netlink.Route) {
		t.Helper()
		testenv.NoError(t, p.Do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := change(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: hostNet(netip.MustParseAddr("10.42.7.1")), Scope: netlink.SCOPE_LINK}); err != nil {
				return err
			}
			defaults, err = netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0"))}, netlink.RT_FILTER_DST)
			return err
		}))
		return defaults
	}
	gateways(func(r *netlink.Route) error { // the kernel does not take a route by a gateway to which there is none
		return errors.Join(netlink.RouteDel(podDefault(r.LinkIndex, netip.MustParseAddr("10.42.7.1"), n.server.network.Load().sizes)), netlink.RouteDel(r))
	})
	to(clusterconfig.NetworkVXLAN)
	n.stop() // its loop
	failed := func() int {
		n.server.heal(t.Context(), true)
		return len(n.server.resizeErrors)
	}
	for range 2 {
		if got := failed(); got != 1 {
			t.Fatalf("%d pods are without their size, want 1", got)
		}
	}
	if defaults := gateways(netlink.RouteAdd); len(defaults) > 0 {
		t.Fatalf("the pod's way is there already: %v", defaults)
	}
	testenv.Equal(t, failed(), 0, "pods are without their size:")
	testenv.Equal(t, len(gateways(func(*netlink.Route) error { return nil })), 1, "the pod's way is")
	const says = "A running pod keeps its MTU"
	if got := strings.Count(n.log(), says); got != 1 {
		t.Errorf("it is logged %d times", got)
	}
}

// TestHostPortOfNewBackend: what comes from other nodes goes to no pod that has had that port since before the change;
// it has it again afterwards.
func TestHostPortOfNewBackend(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	to := changing(n, clusterconfig.NetworkHostGateway)
	n.start()
	n.ready("10.42.7.0/24")
	n.pod("aaa", PortMapping{HostPort: clusterconfig.VXLANPort, ContainerPort: 53, Protocol: "udp"}, PortMapping{HostPort: clusterconfig.VXLANPort, ContainerPort: 53, Protocol: "tcp"})
	for _, c := range []struct {
		backend string
		has     bool
	}{{clusterconfig.NetworkHostGateway, true}, {clusterconfig.NetworkVXLAN, false}, {clusterconfig.NetworkHostGateway, true}} {
		to(c.backend)
		ports := netns.NFT(t, "list", "map", "inet", tableName, "ports4")
		testenv.True(t, strings.Contains(ports, "udp . 8472") == c.has && strings.Contains(ports, "tcp . 8472"),
			"%s: the pod has %s", c.backend, ports)
	}
}

// TestBackendsStateIsIndependentOfHistory: a back end looks the same from wherever the node has changed to it.
func TestBackendsStateIsIndependentOfHistory(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	n.stop()
	to := changing(n, clusterconfig.NetworkVXLAN)
	n.o.NodeIPs = append(n.o.NodeIPs, netip.MustParseAddr(nodeAddr6))
	peers := make(chan []Peer)
	n.o.Peers = peers
	n.start()
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	peers <- []Peer{{Name: "b", PodCIDRs: prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), WireGuardKey: testKey(2).PublicKey().String(),
		Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr), netip.MustParseAddr(outAddr6)}}}
	readState := func() string {
		t.Helper()
		k := newKernel()
		k.wg = n.server.wg
		have := testenv.Must(k.observe(Bridge, nil))(t)
		var lines []string
		for _, o := range have {
			lines = append(lines, o.String())
		}
		lines = append(lines, strings.Split(netns.NFT(t, "--stateless", "list", "table", "inet", tableName), "\n")...)
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	const v, h, w = clusterconfig.NetworkVXLAN, clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard
	first := map[string]string{}
	before := ""
	for _, name := range []string{v, h, w, v, w, h, v} {
		to(name)
		now := readState()
		testenv.Require(t, strings.Contains(now, "10.42.8.0/24"), "%s leads nowhere:\n%s", name, now)
		if first[name] == "" {
			first[name] = now
		} else if now != first[name] {
			t.Errorf("%s after %s is\n%s\nand was at first\n%s", name, before, now, first[name])
		}
		before = name
	}
	testenv.False(t, first[v] == first[h] || first[h] == first[w], "two back ends look the same")
}

// TestPeersAreRoutedByBothFamiliesInterfaces: a node with an address of each family on interfaces of their own has a
// way to its peers by both, with each back end.
func TestPeersAreRoutedByBothFamiliesInterfaces(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56")
	n.stop()
	n.outside.Link(t, "uplink6", "eth6", []string{"fd99::1/64"}, []string{"fd99::2/64"})
	to := changing(n, clusterconfig.NetworkVXLAN)
	n.o.NodeIPs = append(n.o.NodeIPs, netip.MustParseAddr("fd99::1"))
	peers := make(chan []Peer)
	n.o.Peers = peers
	n.start()
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	peers <- []Peer{{Name: "b", PodCIDRs: prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), WireGuardKey: testKey(2).PublicKey().String(),
		Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr), netip.MustParseAddr("fd99::2")}}}
	for _, c := range []struct{ backend, v4, v6 string }{
		{clusterconfig.NetworkVXLAN, deviceVXLAN4, deviceVXLAN4}, {clusterconfig.NetworkHostGateway, "uplink", "uplink6"}, {clusterconfig.NetworkWireGuard, wireGuardDevice, wireGuardDevice},
		{clusterconfig.NetworkHostGateway, "uplink", "uplink6"}, {clusterconfig.NetworkVXLAN, deviceVXLAN4, deviceVXLAN4},
	} {
		to(c.backend)
		for ip, want := range map[string]string{"10.42.8.5": c.v4, "fd42:0:0:8::5": c.v6} {
			eventually(t, func() error { // what failed is tried again
				routes, err := netlink.RouteGet(netip.MustParseAddr(ip).AsSlice())
				if err != nil || len(routes) == 0 {
					return fmt.Errorf("%s: no way to %s: %w", c.backend, ip, err)
				}
				l, err := netlink.LinkByIndex(routes[0].LinkIndex)
				if err == nil && l.Attrs().Name != want {
					err = fmt.Errorf("%s: the way to %s is by %s, want %s", c.backend, ip, l.Attrs().Name, want)
				}
				return err
			})
		}
		testenv.Equal(t, n.server.Backend(), c.backend, "the node goes by")
	}
}

// TestUnroutablePeerDoesNotStopNode: a node that says it is where no way can lead keeps no other node from serving
// pods, nor from a change of the back end; it is named.
func TestUnroutablePeerDoesNotStopNode(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	var mu sync.Mutex
	reported := ""
	n.o.Report = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		reported = fmt.Sprint(err)
	}
	says := func(want string) {
		t.Helper()
		eventually(t, func() error {
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(reported, want) {
				return fmt.Errorf("it says %s, want %s", reported, want)
			}
			return nil
		})
	}
	to := changing(n, clusterconfig.NetworkHostGateway)
	peers := make(chan []Peer)
	n.o.Peers = peers
	n.start()
	const broadcast, honest = "192.0.2.255", "192.0.2.3"
	at := func(address string) {
		peers <- []Peer{
			{Name: "liar", PodCIDRs: prefixes("10.42.9.0/24"), WireGuardKey: testKey(3).PublicKey().String(), Underlay: []netip.Addr{netip.MustParseAddr(address)}},
			{Name: "b", PodCIDRs: prefixes("10.42.8.0/24"), WireGuardKey: testKey(2).PublicKey().String(), Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr)}},
		}
	}
	at(broadcast)
	n.ready("10.42.7.0/24")
	n.pod("aaa")
	says("node liar: the kernel takes no way to it: making route 10.42.9.0/24 via " + broadcast)
	for _, backend := range []string{clusterconfig.NetworkVXLAN, clusterconfig.NetworkHostGateway} {
		to(backend)
		testenv.Equal(t, n.server.Backend(), backend, "the node goes by")
		if routes, err := netlink.RouteGet(netip.MustParseAddr("10.42.8.5").AsSlice()); err != nil || len(routes) == 0 || (routes[0].Gw.String() == outsideAddr) != (backend == clusterconfig.NetworkHostGateway) {
			t.Errorf("%s: the way to the honest one is %v, %v", backend, routes, err)
		}
	}
	says("node liar: ")
	at(honest)
	says("<nil>")
	if routes, err := netlink.RouteGet(netip.MustParseAddr("10.42.9.5").AsSlice()); err != nil || len(routes) == 0 || routes[0].Gw.String() != honest {
		t.Errorf("the way to the liar, when it is one no more, is %v, %v", routes, err)
	}
}
