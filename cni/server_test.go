// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestPodsReachOneAnotherAndHost(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("br_netfilter=%v", on), func(t *testing.T) {
			netns.Require(t)
			netns.BridgeNetfilter(t, on)
			n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
			a, b := n.pod("aaa"), n.pod("bbb")
			testenv.True(t, a.ips[0] == "10.42.7.2" && b.ips[0] == "10.42.7.3",
				"addresses %v and %v, want the first two after the gateway", a.ips, b.ips)
			serve(t, a, "a", "tcp", ":80")
			serve(t, b, "b", "tcp", ":80")
			serve(t, here{}, "node", "tcp", ":81")
			serve(t, n.outside, "outside", "tcp", ":82")
			// A Service as any proxier makes it, to prove that its replies are translated back.
			netns.NFT(t, "add table ip svc; add chain ip svc pre { type nat hook prerouting priority -100; };"+
				"add rule ip svc pre ip daddr 10.43.0.9 tcp dport 80 dnat to "+b.ips[0]+";"+
				"add chain ip svc out { type nat hook output priority -100; };"+
				"add rule ip svc out ip daddr 10.43.0.9 tcp dport 80 dnat to "+b.ips[0])
			t.Cleanup(func() { netns.NFT(t, "delete table ip svc") })

			expect(t, a, "pod to itself by loopback", "127.0.0.1:80", "a 127.0.0.1")
			expect(t, a, "pod to gateway", "10.42.7.1:81", "node "+a.ips[0])
			expect(t, a, "pod to node", nodeAddr+":81", "node "+a.ips[0])
			expect(t, a, "pod to pod", b.ips[0]+":80", "b "+a.ips[0])
			expect(t, a, "pod to Service to pod of the same node", "10.43.0.9:80", "b "+a.ips[0])
			expect(t, here{}, "node to pod", b.ips[0]+":80", "b 10.42.7.1")
			expect(t, here{}, "node to Service", "10.43.0.9:80", "b 10.42.7.1")
			expect(t, a, "pod to outside, masqueraded", outsideAddr+":82", "outside "+nodeAddr)

			uplink := testenv.Must(netlink.LinkByName("uplink"))(t)
			testenv.NoError(t,
				netlink.RouteDel(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), LinkIndex: uplink.Attrs().Index}))
			expect(t, here{}, "node without default route to Service", "10.43.0.9:80", "b 10.42.7.1")
			expect(t, a, "pod to Service, node without default route", "10.43.0.9:80", "b "+a.ips[0])

			testenv.Check(t, n.runtime.CheckNetworkList(context.Background(), n.conflist(), a.rt), "CHECK")
			n.del(a)
			n.del(a) // again: what is gone is no error
			testenv.Fails(t, n.runtime.CheckNetworkList(context.Background(), n.conflist(), a.rt), "CHECK of a deleted attachment succeeded")
			refuse(t, here{}, "deleted pod", a.ips[0]+":80")
		})
	}
}

func TestPodsHaveAddressesOfBothFamilies(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
	port := PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}
	a, b := n.pod("aaa"), n.pod("bbb", port)
	testenv.Require(t, len(a.ips) == 2 && a.ips[0] == "10.42.7.2" && a.ips[1] == "fd42:0:0:7::2",
		"addresses %v, want one of each family, IPv4 first", a.ips)
	serve(t, b, "b", "tcp", ":80")
	serve(t, n.outside, "outside", "tcp", ":82")
	expect(t, a, "pod to pod", "["+b.ips[1]+"]:80", "b "+a.ips[1])
	expect(t, here{}, "node to pod", "["+b.ips[1]+"]:80", "b fd42:0:0:7::1")
	expect(t, a, "pod to outside, masqueraded", "["+outAddr6+"]:82", "outside "+nodeAddr6)
	expect(t, n.outside, "outside to host port", "["+nodeAddr6+"]:8080", "b "+outAddr6)
	expect(t, n.outside, "outside to host port", nodeAddr+":8080", "b "+outsideAddr)
}

// An attacker who has a pod gives it the address of another pod and sends from that; the datagram must not arrive.
func TestSpoofedSourceIsDropped(t *testing.T) {
	n := unguarded(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a, b := n.pod("aaa"), n.pod("bbb")
	const spoofed = "10.42.7.99"
	testenv.NoError(t, a.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(spoofed))})
	}))
	inbox := netns.ListenPacket(t, b, "udp", b.ips[0]+":5000")
	// first sends from the false address, then from the true one, and returns which of them arrives first.
	first := func() string {
		t.Helper()
		for _, from := range []string{spoofed, a.ips[0]} {
			testenv.NoError(t, netns.SendDatagram(a, from, b.ips[0]+":5000", "x"))
		}
		_ = inbox.SetReadDeadline(time.Now().Add(2 * time.Minute))
		_, from, err := inbox.ReadFrom(make([]byte, 1))
		testenv.NoError(t, err)
		host, _, _ := net.SplitHostPort(from.String())
		return host
	}
	if got := first(); got != a.ips[0] {
		t.Errorf("the packet from %s arrived", got)
	}
	netns.NFT(t, "flush chain inet coracle guard")
	eventually(t, func() error { // of two that different processors send the kernel may deliver the second one first
		if got := first(); got != spoofed {
			return fmt.Errorf("unguarded, the packet from %s arrived first: this test proves nothing", got)
		}
		return nil
	})
}

func TestNotReadyWithoutPodCIDR(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	conf := testenv.Must(conflist(n.o.Socket))(t)
	list, err := libcni.ConfListFromBytes(conf)
	testenv.NoError(t, err)
	p := n.sandbox("aaa")
	_, err = n.runtime.AddNetworkList(context.Background(), list, p.rt)
	wantCode(t, err, wire.CodeTryAgainLater, "network not ready yet")
	testenv.Fails(t, testenv.Err(os.Stat(filepath.Join(n.o.ConfDir, conflistName))), "the node is network-ready without a pod CIDR")
	testenv.Check(t, n.runtime.DelNetworkList(context.Background(), list, p.rt), "DEL of nothing")
	n.ready("10.42.7.0/24")
	testenv.NoError(t, n.add(p))
}

func TestRestartKeepsStateWithoutAPI(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a, dead := n.pod("aaa"), n.pod("dead")
	serve(t, a, "a", "tcp", ":80")
	n.stop()
	expect(t, here{}, "pod while the agent is down", a.ips[0]+":80", "a 10.42.7.1")
	list := n.conflist()
	_, err := n.runtime.AddNetworkList(context.Background(), list, n.sandbox("early").rt)
	wantCode(t, err, wire.CodeTryAgainLater, "agent is not running")
	dead.Close()

	// The pod CIDR is not delivered again: what was known last time serves.
	n.start()
	eventually(t, func() error {
		if !n.server.Ready() {
			return fmt.Errorf("not ready")
		}
		return nil
	})
	b := n.pod("bbb")
	testenv.False(t, b.ips[0] == a.ips[0], "address %s given twice", b.ips[0])
	expect(t, b, "pod from before the restart", a.ips[0]+":80", "a "+b.ips[0])
	testenv.True(t, n.server.attachments.get(key{"dead", "eth0"}) == nil, "the sandbox that died meanwhile is still known")
	testenv.Fails(t, testenv.Err(os.Stat(filepath.Join(n.o.StateDir, "ipam", "10.42.7.0_24", dead.ips[0]))), "its address is still taken")
	testenv.Fails(t, n.add(b), "ADD of what is attached already succeeded")
}

// A node object that was deleted and made again may come with another pod CIDR.
func TestRecreatedNodeGetsNewPodCIDR(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	old := n.pod("old")
	serve(t, old, "old", "tcp", ":80")
	serve(t, n.outside, "outside", "tcp", ":82")
	n.cidrs <- prefixes("10.42.9.0/24")
	eventually(t, func() error {
		if nw := n.server.network.Load(); nw.podCIDRs[0] != netip.MustParsePrefix("10.42.9.0/24") {
			return fmt.Errorf("still %v", nw.podCIDRs)
		}
		return nil
	})
	b := n.pod("new")
	testenv.True(t, b.ips[0] == "10.42.9.2", "new pod at %v", b.ips)
	expect(t, b, "new pod to old pod", old.ips[0]+":80", "old "+b.ips[0])
	expect(t, here{}, "node to old pod", old.ips[0]+":80", "old 10.42.9.1")
	expect(t, old, "old pod to outside, masqueraded", outsideAddr+":82", "outside "+nodeAddr)
	expect(t, b, "new pod to outside, masqueraded", outsideAddr+":82", "outside "+nodeAddr)
	n.del(old)
	owners, err := n.server.ipam.owners()
	testenv.False(t, err != nil || len(owners) != 1, "addresses held by %v, %v; want the new pod's only", owners, err)
}

// A plugin that says nothing does not hold the agent's end up.
func TestStopWithSilentPlugin(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	n.hello = time.Hour // longer than any test takes
	n.start()
	n.ready("10.42.7.0/24")
	conn := testenv.Must(net.Dial("unix", n.o.Socket))(t)
	defer conn.Close()
	n.pod("aaa") // its call came later and was served: the silent one has been accepted
	n.stop()
}

func TestPodNetworkWithoutFreeAddresses(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/29") // .2 to .6
	pods := []*pod{}
	for i := range 5 {
		pods = append(pods, n.pod(fmt.Sprintf("pod%d", i)))
	}
	late := n.sandbox("late")
	err := n.add(late)
	wantCode(t, err, wire.CodeExhausted, "no free address in pod CIDR 10.42.7.0/29")
	testenv.Fails(t, testenv.Err(netlink.LinkByName(deviceName(key{"late", "eth0"}))), "a failed ADD left a device")
	pods[2].Close() // a crash of the runtime: no DEL ever comes
	testenv.NoError(t, n.add(late), "the address of a dead sandbox was not collected")
	testenv.False(t, late.ips[0] != pods[2].ips[0], "got %s, want the dead sandbox's %s", late.ips[0], pods[2].ips[0])
}

func TestGCRemovesLostPods(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	keep, lost := n.pod("keep"), n.pod("lost", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": NetworkName, "type": PluginName, "socket": n.o.Socket,
		"cni.dev/valid-attachments": []map[string]string{{"containerID": "keep", "ifname": "eth0"}},
	}
	data := testenv.Must(json.Marshal(conf))(t)
	resp, err := wire.Call(context.Background(), n.o.Socket, wire.Request{Command: wire.CommandGC, Config: data})
	testenv.Require(t, err == nil && resp.Error == nil, "GC: %v %v", err, resp.Error)
	testenv.Fails(t, testenv.Err(netlink.LinkByName(deviceName(key{"lost", "eth0"}))), "GC left a device")
	testenv.False(t, strings.Contains(netns.NFT(t, "list table inet coracle"), lost.ips[0]), "GC left host ports")
	testenv.Check(t, n.runtime.CheckNetworkList(context.Background(), n.conflist(), keep.rt), "GC harmed a valid attachment")
	resp, err = wire.Call(context.Background(), n.o.Socket, wire.Request{Command: wire.CommandStatus, Config: data})
	testenv.False(t, err != nil || resp.Error != nil, "STATUS: %v %v", err, resp.Error)
}

func TestCleanupRemovesAllNetworkObjects(t *testing.T) {
	for _, backend := range clusterconfig.NetworkBackends {
		if backend == clusterconfig.NetworkNone {
			continue
		}
		t.Run(backend, func(t *testing.T) {
			n := newNode(t, "10.42.0.0/16")
			n.stop()
			n.o.Backend, n.o.NodeIPs = backend, []netip.Addr{netip.MustParseAddr(nodeAddr)}
			n.start()
			n.ready("10.42.7.0/24")
			n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
			n.stop()
			testenv.NoError(t, Cleanup(CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}))
			links := testenv.Must(netlink.LinkList())(t)
			for _, l := range links {
				testenv.False(t, l.Attrs().Name != "lo" && l.Attrs().Name != "uplink", "device %s is left", l.Attrs().Name)
			}
			routes := testenv.Must(netlink.RouteList(nil, netlink.FAMILY_V4))(t)
			for _, r := range routes {
				if r.Dst != nil && (strings.HasPrefix(r.Dst.String(), "10.42") || strings.HasPrefix(r.Dst.String(), "10.43")) {
					t.Errorf("route %v is left", r)
				}
			}
			if out := netns.NFT(t, "list tables"); strings.Contains(out, "coracle") {
				t.Errorf("tables left: %s", out)
			}
			for _, dir := range []string{n.o.StateDir, filepath.Join(n.o.ConfDir, conflistName)} {
				testenv.Fails(t, testenv.Err(os.Stat(dir)), "%s is left", dir)
			}
			testenv.Check(t, Cleanup(CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}), "again")
		})
	}
}

func TestSimultaneousPodsGetDistinctAddresses(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	const many = 20
	pods := make([]*pod, many)
	for i := range pods {
		pods[i] = n.sandbox(fmt.Sprintf("pod%d", i), PortMapping{HostPort: uint16(9000 + i), ContainerPort: 80, Protocol: "tcp"})
	}
	each := func(f func(*pod) error) {
		t.Helper()
		errs := make(chan error, many)
		for _, p := range pods {
			go func() { errs <- f(p) }()
		}
		for range pods {
			testenv.Check(t, <-errs)
		}
	}
	list := n.conflist()
	start := time.Now()
	each(func(p *pod) error {
		_, err := n.runtime.AddNetworkList(context.Background(), list, p.rt)
		return err
	})
	t.Logf("%d ADDs at once took %v", many, time.Since(start))
	testenv.Equal(t, strings.Count(netns.NFT(t, "list map inet coracle ports4"), ". 80"), many, "not every host port is there:")
	seen := map[netip.Addr]bool{}
	for _, r := range n.server.attachments.list() {
		testenv.False(t, seen[r.IPs[0]], "address %s given twice", r.IPs[0])
		seen[r.IPs[0]] = true
	}
	each(func(p *pod) error { return n.runtime.DelNetworkList(context.Background(), list, p.rt) })
	testenv.Equal(t, len(n.server.attachments.list()), 0, "records left:")
	testenv.Equal(t, len(testenv.Must(n.server.ipam.owners())(t)), 0, "addresses left:")
}
