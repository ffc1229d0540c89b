// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func testNode(name string, age int, cidrs []string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(int64(1000-age), 0)}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	for _, a := range addrs {
		kind, ip, _ := strings.Cut(a, " ")
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeAddressType(kind), Address: ip})
	}
	return n
}

func TestPeersAreDerivedFromNodes(t *testing.T) {
	annotatedNode := testNode("vpn", 1, []string{"10.42.5.0/24"}, "InternalIP 192.0.2.5")
	annotatedNode.Annotations = map[string]string{clusterconfig.UnderlayAnnotation: "fd99::5, 10.99.0.5"}
	thief := testNode("thief", 0, []string{"10.42.6.0/24"}, "InternalIP 192.0.2.6")
	thief.Annotations = map[string]string{clusterconfig.UnderlayAnnotation: "192.0.2.5,127.0.0.1,nonsense"}
	peers := peersOf([]*corev1.Node{
		thief, annotatedNode,
		testNode("me", 9, []string{"10.42.1.0/24"}, "InternalIP 192.0.2.1"),
		testNode("new", 2, nil, "InternalIP 192.0.2.9"),
		testNode("both", 7, []string{"fd42:0:0:2::/64", "10.42.2.0/24"}, "InternalIP 2001:db8::2", "InternalIP 192.0.2.2", "Hostname both", "ExternalIP 203.0.113.2"),
		testNode("far", 5, []string{"10.42.3.0/24"}, "ExternalIP 203.0.113.3"),
		testNode("odd", 4, []string{"10.42.4.0/24"}, "InternalIP ::1", "InternalIP unknown"),
	}, "me")
	var got []string
	for _, p := range peers {
		got = append(got, fmt.Sprintf("%s%v%v", p.Name, p.PodCIDRs, p.Underlay))
	}
	want := `both[10.42.2.0/24 fd42:0:0:2::/64][192.0.2.2 2001:db8::2]
far[10.42.3.0/24][203.0.113.3]
odd[10.42.4.0/24][]
vpn[10.42.5.0/24][10.99.0.5 fd99::5]
thief[10.42.6.0/24][192.0.2.6]`
	testenv.Equal(t, strings.Join(got, "\n"), want, "")
}

// TestPeersOfAnyOrder: a machine that has the external address of one before it, whose Node has not been deleted, is
// found at that address, in whichever order the cache lists the two.
func TestPeersOfAnyOrder(t *testing.T) {
	const shared = "203.0.113.5"
	at := func(name string, age int, number byte) *corev1.Node {
		n := testNode(name, age, []string{fmt.Sprintf("10.42.%d.0/24", number)}, fmt.Sprint("InternalIP 192.168.1.", number), "ExternalIP "+shared)
		n.Annotations = map[string]string{clusterconfig.UnderlayAnnotation: shared}
		return n
	}
	before, now := at("before", 9, 2), at("now", 1, 3)
	thief := testNode("thief", 0, []string{"10.42.4.0/24"}, "InternalIP 192.168.1.4")
	thief.Annotations = map[string]string{clusterconfig.UnderlayAnnotation: shared}
	all := []*corev1.Node{before, now, thief}
	for range 2 {
		var got []string
		for _, p := range peersOf(all, "me") {
			got = append(got, fmt.Sprint(p.Name, p.Underlay))
		}
		if g, want := strings.Join(got, " "), "before[203.0.113.5] now[203.0.113.5] thief[192.168.1.4]"; g != want {
			t.Errorf("got %s, want %s", g, want)
		}
		slices.Reverse(all)
	}
}

// TestWatchedPeersBeginWithWholeList: the first list is whole, and what follows is news.
func TestWatchedPeersBeginWithWholeList(t *testing.T) {
	ctx := t.Context()
	client := fake.NewClientset()
	for i := range 20 {
		n := testNode(fmt.Sprintf("n%02d", i), 100-i, []string{fmt.Sprintf("10.42.%d.0/24", i)}, fmt.Sprintf("InternalIP 192.0.2.%d", i+1))
		testenv.Must(client.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{}))(t)
	}
	// The fake API server tells a watch nothing of what was between the list and its beginning.
	watching := make(chan struct{}, 100) // more than watches begin here
	client.PrependWatchReactor("nodes", func(action clienttesting.Action) (bool, watch.Interface, error) {
		events, err := client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		watching <- struct{}{}
		return true, events, err
	})
	factory := informers.NewSharedInformerFactory(client, 0)
	peers := testenv.Must(WatchPeers(ctx, factory.Core().V1().Nodes(), "n07"))(t)
	factory.Start(ctx.Done())
	t.Cleanup(factory.Shutdown)
	next := func(what string) []Peer {
		select {
		case p := <-peers:
			return p
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: nothing came", what)
			return nil
		}
	}
	if got := next("the first list"); len(got) != 19 || got[0].Name != "n00" || got[18].Name != "n19" {
		t.Fatalf("the first list has %d nodes: %v", len(got), got)
	}
	<-watching
	testenv.NoError(t, client.CoreV1().Nodes().Delete(ctx, "n03", metav1.DeleteOptions{}))
	if got := next("a node less"); len(got) != 18 || slices.ContainsFunc(got, func(p Peer) bool { return p.Name == "n03" }) {
		t.Errorf("a node less: %v", got)
	}
	moved := testNode("n04", 96, []string{"10.42.4.0/24"}, "InternalIP 192.0.2.44")
	testenv.Must(client.CoreV1().Nodes().Update(ctx, moved, metav1.UpdateOptions{}))(t)
	if got := next("another address"); got[3].Name != "n04" || got[3].Underlay[0] != netip.MustParseAddr("192.0.2.44") {
		t.Errorf("another address: %v", got)
	}
}

// TestDesiredWaysKeepInvariantsForRandomNodes: ids are single, every pod network of a
// peer of a family that both have has one way or is in trouble, no way leads to this node's pods, and the order of
// peers changes nothing but the order.
func TestDesiredWaysKeepInvariantsForRandomNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		families := make([]int, n+1)
		for i := range families {
			families[i] = rapid.IntRange(1, 3).Draw(t, "families") // of the node's addresses; bit 0: IPv4, bit 1: IPv6
		}
		c := wayCluster{
			backend:  rapid.SampledFrom([]backend{vxlan{}, hostGateway{}}).Draw(t, "backend"),
			podCIDRs: rapid.SampledFrom([]func(int) []netip.Prefix{dualPods, func(i int) []netip.Prefix { return dualPods(i)[:1] }, func(i int) []netip.Prefix { return dualPods(i)[1:] }}).Draw(t, "pods"),
			underlay: func(i int) (out []string) {
				if families[i]&1 != 0 {
					out = underlay4(i)
				}
				if families[i]&2 != 0 {
					out = append(out, underlay6(i)...)
				}
				return out
			},
			mtu: rapid.IntRange(1280, 9000).Draw(t, "mtu"),
		}
		in := waysOf(1, n, c)
		objects, trouble := c.backend.desired(in)
		seen, routed := map[string]bool{}, map[netip.Prefix]bool{}
		for _, w := range objects {
			if seen[w.id()] {
				t.Fatalf("%s is there twice", w.id())
			}
			seen[w.id()] = true
			if r, ok := w.object.(route); ok {
				routed[r.dst] = true
				testenv.Require(t, !slices.ContainsFunc(in.podCIDRs, r.dst.Overlaps), "%s leads away from this node", r)
			}
		}
		for _, p := range in.peers {
			lost := slices.ContainsFunc(trouble, func(x unreachablePeer) bool { return x.peer == p.Name })
			for _, cidr := range p.PodCIDRs {
				testenv.Require(t, routed[cidr] || lost, "%s of %s has no way, and no error says so", cidr, p.Name)
			}
		}
		again := in
		again.peers = slices.Clone(in.peers)
		slices.Reverse(again.peers)
		more, _ := c.backend.desired(again)
		a, b := strings.Split(render(objects, nil), "\n"), strings.Split(render(more, nil), "\n")
		slices.Sort(a)
		slices.Sort(b)
		testenv.Require(t, slices.Equal(a, b), "another order of peers makes\n%v\nof\n%v", b, a)
	})
}

func TestPrefixesBecomeNumericRanges(t *testing.T) {
	for text, want := range map[string]string{
		"10.42.1.0/24": "0x0a2a0100-0x0a2a01ff", "10.42.1.7/32": "0x0a2a0107", "10.42.0.0/15": "0x0a2a0000-0x0a2bffff",
		"fd42:0:0:1::/64": "0xfd420000000000010000000000000000-0xfd42000000000001ffffffffffffffff",
	} {
		testenv.Equal(t, numberRange(netip.MustParsePrefix(text)), want, "%s:", text)
	}
}

// TestPodsFollowUnderlayMTU: a server follows the MTU of the interface to other nodes with its running pods, and makes
// again at once what another program takes of its ways.
func TestPodsFollowUnderlayMTU(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/48")
	n.stop()
	peers := make(chan []Peer, 1)
	n.o.NodeIPs, n.o.Peers = []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr(nodeAddr6)}, peers
	n.guard = time.Hour // what follows is seen by the kernel's news alone
	n.start()
	other := Peer{Name: "other", PodCIDRs: prefixes("10.42.8.0/24", "fd42:0:0:8::/64"), Underlay: []netip.Addr{netip.MustParseAddr(outsideAddr)}}
	peers <- []Peer{other}
	n.ready("10.42.7.0/24", "fd42:0:0:7::/64")
	p := n.pod("aaa")
	for _, c := range []struct{ underlay, pod, route int }{{1400, 1350, 0}, {1280, 1280, 1230}, {1500, 1450, 0}} {
		setMTU(t, "uplink", c.underlay)
		eventually(t, func() error { return podSizes(p, c.pod, c.route) })
	}
	for what, harm := range map[string]func() error{
		"device": func() error { return removeDevice(deviceVXLAN4) },
		"route": func() error {
			return newKernel().remove(route{dst: other.PodCIDRs[0], device: deviceVXLAN4, via: vtepIP(other.PodCIDRs[0]), onlink: true})
		},
		"neighbour": func() error { return newKernel().remove(neighbour{deviceVXLAN4, vtepIP(other.PodCIDRs[1]), ""}) },
		"fdb": func() error {
			return newKernel().remove(forward{deviceVXLAN4, vtepMAC(other.PodCIDRs), other.Underlay[0]})
		},
	} {
		if err := harm(); err != nil {
			t.Fatal(what, err)
		}
		eventually(t, func() error {
			have, err := newKernel().observe(Bridge, nil)
			if err != nil {
				return err
			}
			ways, _ := vxlan{}.desired(n.server.network.Load().paths)
			for _, w := range ways {
				if _, ok := w.object.(sysctl); !ok && !satisfies(have[w.id()], w.object) {
					return fmt.Errorf("%s: %s is missing", what, w)
				}
			}
			return nil
		})
	}
	peers <- []Peer{}
	eventually(t, func() error {
		have, err := newKernel().observe(Bridge, nil)
		for id := range have {
			if strings.Contains(id, "10.42.8.") || strings.Contains(id, tunnelPrefix) {
				return fmt.Errorf("%s is left", id)
			}
		}
		return err
	})
}

func setMTU(t *testing.T, device string, mtu int) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetMTU(l, mtu)
	}
	testenv.NoError(t, err)
}

// podSizes compares the MTU of a pod's device, and of its default IPv4 route.
func podSizes(p *pod, device, route int) error {
	return p.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST)
		if err != nil || len(routes) != 1 {
			return fmt.Errorf("default routes %v, %w", routes, err)
		}
		if l.Attrs().MTU != device || routes[0].MTU != route {
			return fmt.Errorf("the device has %d, want %d; the route %d, want %d", l.Attrs().MTU, device, routes[0].MTU, route)
		}
		return nil
	})
}
