// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/cni/plugin"
	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/nstest"
)

// TestMain is also the plugin's program: the runtime executes this binary under the plugin's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == PluginName {
		os.Exit(plugin.Run(context.Background(), plugin.Options{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout}))
	}
	os.Exit(nstest.Main(m))
}

const (
	nodeAddr    = "192.0.2.1"
	outsideAddr = "192.0.2.2"
	nodeAddr6   = "2001:db8::1"
	outAddr6    = "2001:db8::2"
)

// node is a node under test: the process's own namespace, a server, a runtime that executes the real plugin.
type node struct {
	t       *testing.T
	o       Options
	cidrs   chan []netip.Prefix
	outside *nstest.NS
	runtime *libcni.CNIConfig
	cancel  context.CancelFunc
	done    chan error
	server  *Server
}

func newNode(t *testing.T, clusterCIDRs ...string) *node {
	t.Helper()
	nstest.Require(t)
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, PluginName)); err != nil {
		t.Fatal(err)
	}
	n := &node{
		t:       t,
		outside: nstest.New(t),
		runtime: libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), nil),
		o: Options{
			Socket: filepath.Join(dir, "run", "cni.sock"), StateDir: filepath.Join(dir, "state"), ConfDir: filepath.Join(dir, "net.d"),
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		},
	}
	for _, c := range clusterCIDRs {
		n.o.ClusterCIDRs = append(n.o.ClusterCIDRs, netip.MustParsePrefix(c))
	}
	if err := os.Mkdir(n.o.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	n.outside.Link(t, "uplink", "eth0", []string{nodeAddr + "/24", nodeAddr6 + "/64"}, []string{outsideAddr + "/24", outAddr6 + "/64"})
	if err := nstest.AddRoute("0.0.0.0/0", outsideAddr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.stop()
		if err := Cleanup(context.Background(), CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}); err != nil {
			t.Error(err)
		}
	})
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	n.cidrs = make(chan []netip.Prefix, 1)
	n.o.PodCIDRs = n.cidrs
	n.o.Logger = ktesting.NewLogger(n.t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	s, err := NewServer(n.o)
	if err != nil {
		n.t.Fatal(err)
	}
	s.guard = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done, n.server = cancel, make(chan error, 1), s
	go func() { n.done <- s.Run(ctx) }()
	eventually(n.t, func() error {
		conn, err := net.Dial("unix", n.o.Socket)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.done; err != nil {
		n.t.Error("server:", err)
	}
	n.cancel = nil
}

func (n *node) ready(cidrs ...string) *node {
	n.t.Helper()
	var ps []netip.Prefix
	for _, c := range cidrs {
		ps = append(ps, netip.MustParsePrefix(c))
	}
	n.cidrs <- ps
	n.waitReady()
	return n
}

func (n *node) waitReady() {
	n.t.Helper()
	eventually(n.t, func() error {
		_, err := os.Stat(filepath.Join(n.o.ConfDir, conflistName))
		return err
	})
}

// pod is a network namespace with a sandbox's name.
type pod struct {
	*nstest.NS
	id  string
	ips []string
	rt  *libcni.RuntimeConf
}

func (n *node) pod(id string, ports ...PortMapping) *pod {
	n.t.Helper()
	p := n.sandbox(id, ports...)
	if err := n.add(p); err != nil {
		n.t.Fatalf("ADD %s: %v", id, err)
	}
	return p
}

func (n *node) sandbox(id string, ports ...PortMapping) *pod {
	ns := nstest.New(n.t)
	return &pod{NS: ns, id: id, rt: &libcni.RuntimeConf{
		ContainerID: id, NetNS: ns.Path, IfName: "eth0",
		Args:           [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}},
		CapabilityArgs: map[string]any{"portMappings": ports},
	}}
}

func (n *node) conflist() *libcni.NetworkConfigList {
	n.t.Helper()
	list, err := libcni.ConfListFromFile(filepath.Join(n.o.ConfDir, conflistName))
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (n *node) add(p *pod) error {
	n.t.Helper()
	res, err := n.runtime.AddNetworkList(context.Background(), n.conflist(), p.rt)
	if err != nil {
		return err
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		n.t.Fatal(err)
	}
	p.ips = nil
	for _, ip := range r.IPs {
		p.ips = append(p.ips, ip.Address.IP.String())
	}
	return nil
}

func (n *node) del(p *pod) {
	n.t.Helper()
	if err := n.runtime.DelNetworkList(context.Background(), n.conflist(), p.rt); err != nil {
		n.t.Fatalf("DEL %s: %v", p.id, err)
	}
}

// doer runs something inside a namespace.
type doer interface{ Do(func() error) error }

type here struct{}

func (here) Do(f func() error) error { return f() }

// serve answers each TCP connection in ns with "name peer-address".
func serve(t *testing.T, ns doer, name, network, addr string) {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = net.Listen(network, addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s %s\n", name, host)
			c.Close()
		}
	}()
}

// ask connects from ns and returns what the listener said.
func ask(ns doer, addr string) (answer string, err error) {
	err = ns.Do(func() error {
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		line, err := bufio.NewReader(c).ReadString('\n')
		answer = strings.TrimSpace(line)
		return err
	})
	return answer, err
}

func expect(t *testing.T, ns doer, what, addr, want string) {
	t.Helper()
	if got, err := ask(ns, addr); err != nil || got != want {
		t.Errorf("%s (%s): got %q, %v; want %q", what, addr, got, err, want)
	}
}

func refuse(t *testing.T, ns doer, what, addr string) {
	t.Helper()
	if got, err := ask(ns, addr); err == nil {
		t.Errorf("%s (%s): got %q, want no connection", what, addr, got)
	}
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("never came true:", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func nft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v: %s", args, err, out)
	}
	return string(out)
}

// bridgeNetfilter switches this namespace's br_netfilter, which decides whether bridged frames pass the IP hooks.
func bridgeNetfilter(t *testing.T, on bool) {
	t.Helper()
	v := map[bool]string{false: "0", true: "1"}[on]
	for _, name := range []string{"iptables", "ip6tables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte(v), 0)
		if err != nil && on {
			t.Skip("this kernel has no br_netfilter to switch on:", err)
		}
	}
}

func TestPodNetwork(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("br_netfilter=%v", on), func(t *testing.T) {
			nstest.Require(t)
			bridgeNetfilter(t, on)
			n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
			a, b := n.pod("aaa"), n.pod("bbb")
			if a.ips[0] != "10.42.7.2" || b.ips[0] != "10.42.7.3" {
				t.Errorf("addresses %v and %v, want the first two after the gateway", a.ips, b.ips)
			}
			serve(t, a, "a", "tcp", ":80")
			serve(t, b, "b", "tcp", ":80")
			serve(t, here{}, "node", "tcp", ":81")
			serve(t, n.outside, "outside", "tcp", ":82")
			// A Service as any proxier makes it, to prove that its replies are translated back.
			nft(t, "add table ip svc; add chain ip svc pre { type nat hook prerouting priority -100; };"+
				"add rule ip svc pre ip daddr 10.43.0.9 tcp dport 80 dnat to "+b.ips[0]+";"+
				"add chain ip svc out { type nat hook output priority -100; };"+
				"add rule ip svc out ip daddr 10.43.0.9 tcp dport 80 dnat to "+b.ips[0])
			t.Cleanup(func() { nft(t, "delete table ip svc") })

			expect(t, a, "pod to itself by loopback", "127.0.0.1:80", "a 127.0.0.1")
			expect(t, a, "pod to gateway", "10.42.7.1:81", "node "+a.ips[0])
			expect(t, a, "pod to node", nodeAddr+":81", "node "+a.ips[0])
			expect(t, a, "pod to pod", b.ips[0]+":80", "b "+a.ips[0])
			expect(t, a, "pod to Service to pod of the same node", "10.43.0.9:80", "b "+a.ips[0])
			expect(t, here{}, "node to pod", b.ips[0]+":80", "b 10.42.7.1")
			expect(t, here{}, "node to Service", "10.43.0.9:80", "b 10.42.7.1")
			expect(t, a, "pod to outside, masqueraded", outsideAddr+":82", "outside "+nodeAddr)

			uplink, err := netlink.LinkByName("uplink")
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.RouteDel(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), LinkIndex: uplink.Attrs().Index}); err != nil {
				t.Fatal(err)
			}
			expect(t, here{}, "node without default route to Service", "10.43.0.9:80", "b 10.42.7.1")
			expect(t, a, "pod to Service, node without default route", "10.43.0.9:80", "b "+a.ips[0])

			if err := n.runtime.CheckNetworkList(context.Background(), n.conflist(), a.rt); err != nil {
				t.Error("CHECK:", err)
			}
			n.del(a)
			n.del(a) // again: what is gone is no error
			if err := n.runtime.CheckNetworkList(context.Background(), n.conflist(), a.rt); err == nil {
				t.Error("CHECK of a deleted attachment succeeded")
			}
			refuse(t, here{}, "deleted pod", a.ips[0]+":80")
		})
	}
}

func TestDualStack(t *testing.T) {
	n := newNode(t, "10.42.0.0/16", "fd42::/56").ready("10.42.7.0/24", "fd42:0:0:7::/64")
	port := PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}
	a, b := n.pod("aaa"), n.pod("bbb", port)
	if len(a.ips) != 2 || a.ips[0] != "10.42.7.2" || a.ips[1] != "fd42:0:0:7::2" {
		t.Fatalf("addresses %v, want one of each family, IPv4 first", a.ips)
	}
	serve(t, b, "b", "tcp", ":80")
	serve(t, n.outside, "outside", "tcp", ":82")
	expect(t, a, "pod to pod", "["+b.ips[1]+"]:80", "b "+a.ips[1])
	expect(t, here{}, "node to pod", "["+b.ips[1]+"]:80", "b fd42:0:0:7::1")
	expect(t, a, "pod to outside, masqueraded", "["+outAddr6+"]:82", "outside "+nodeAddr6)
	expect(t, n.outside, "outside to host port", "["+nodeAddr6+"]:8080", "b "+outAddr6)
	expect(t, n.outside, "outside to host port", nodeAddr+":8080", "b "+outsideAddr)
}

func TestHostPorts(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a := n.pod("aaa")
	b := n.pod("bbb",
		PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: "TCP", HostIP: nodeAddr},
		PortMapping{HostPort: 8082, ContainerPort: 80, HostIP: "127.0.0.1"},
		PortMapping{HostPort: 0, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostPort: 8080, ContainerPort: 53, Protocol: "udp"},
	)
	serve(t, b, "b", "tcp", ":80")
	expect(t, n.outside, "outside", nodeAddr+":8080", "b "+outsideAddr)
	expect(t, n.outside, "outside, hostIP", nodeAddr+":8081", "b "+outsideAddr)
	expect(t, a, "other pod", nodeAddr+":8080", "b "+a.ips[0])
	expect(t, a, "other pod by the gateway", "10.42.7.1:8080", "b "+a.ips[0])
	expect(t, b, "hairpin", nodeAddr+":8080", "b "+nodeAddr)
	expect(t, here{}, "node", nodeAddr+":8080", "b "+nodeAddr)
	expect(t, here{}, "node by loopback", "127.0.0.1:8080", "b "+nodeAddr)
	expect(t, here{}, "node by loopback, hostIP", "127.0.0.1:8082", "b "+nodeAddr)
	refuse(t, here{}, "port of another hostIP", nodeAddr+":8082")
	refuse(t, n.outside, "port of another hostIP", nodeAddr+":8082")

	n.stop()
	expect(t, n.outside, "outside while the agent is down", nodeAddr+":8080", "b "+outsideAddr)
	nft(t, "delete table inet coracle") // somebody flushed the ruleset, or the host restarted its firewall
	refuse(t, n.outside, "outside without table", nodeAddr+":8080")
	n.start()
	n.waitReady()
	eventually(t, func() error { _, err := ask(n.outside, nodeAddr+":8080"); return err })

	nft(t, "flush ruleset")
	eventually(t, func() error { _, err := ask(n.outside, nodeAddr+":8080"); return err })

	n.del(b)
	if out := nft(t, "list table inet coracle"); strings.Contains(out, b.ips[0]) {
		t.Errorf("the table still names the deleted pod:\n%s", out)
	}
	refuse(t, n.outside, "deleted", nodeAddr+":8080")
}

// A host port that is reachable through 127.0.0.1 needs route_localnet on the pod's device, which by itself would let
// the pod reach whatever listens on the host's loopback (CVE-2020-8558).
func TestLoopbackStaysClosedToPods(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	p := n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	serve(t, here{}, "node", "tcp", "127.0.0.1:9999")
	if err := p.Do(func() error {
		for _, cmd := range []string{
			"ip addr del 127.0.0.1/8 dev lo",
			"ip route add 127.0.0.1/32 via 10.42.7.1 dev eth0 src " + p.ips[0],
		} {
			if out, err := exec.Command("sh", "-c", cmd).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", cmd, err, out)
			}
		}
		return sysctl("net/ipv4/conf/eth0/route_localnet", "1")
	}); err != nil {
		t.Fatal(err)
	}
	refuse(t, p, "pod to the host's loopback", "127.0.0.1:9999")
	// Without the guard it would have worked, so the refusal above is the guard's.
	nft(t, "flush chain inet coracle guard")
	expect(t, p, "pod to the host's loopback, unguarded", "127.0.0.1:9999", "node "+p.ips[0])
}

func TestSpoofedSourceIsDropped(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a, b := n.pod("aaa"), n.pod("bbb")
	const spoofed = "10.42.7.99"
	if err := a.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr(spoofed))})
	}); err != nil {
		t.Fatal(err)
	}
	var inbox net.PacketConn
	if err := b.Do(func() (err error) { inbox, err = net.ListenPacket("udp", b.ips[0]+":5000"); return err }); err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()
	// first sends from the false address, then from the true one, and returns which of them arrives first.
	first := func() string {
		t.Helper()
		for _, from := range []string{spoofed, a.ips[0]} {
			if err := a.Do(func() error {
				c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(b.ips[0]), Port: 5000})
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("x"))
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		_ = inbox.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, from, err := inbox.ReadFrom(make([]byte, 1))
		if err != nil {
			t.Fatal(err)
		}
		host, _, _ := net.SplitHostPort(from.String())
		return host
	}
	if got := first(); got != a.ips[0] {
		t.Errorf("the packet from %s arrived", got)
	}
	nft(t, "flush chain inet coracle guard")
	if got := first(); got != spoofed {
		t.Errorf("unguarded, the packet from %s arrived first: this test proves nothing", got)
	}
}

func TestNotReadyWithoutPodCIDR(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	conf, err := conflist(n.o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		t.Fatal(err)
	}
	p := n.sandbox("aaa")
	_, err = n.runtime.AddNetworkList(context.Background(), list, p.rt)
	wantCode(t, err, wire.CodeTryAgainLater, "network not ready yet")
	if _, err := os.Stat(filepath.Join(n.o.ConfDir, conflistName)); err == nil {
		t.Error("the node is network-ready without a pod CIDR")
	}
	if err := n.runtime.DelNetworkList(context.Background(), list, p.rt); err != nil {
		t.Error("DEL of nothing:", err)
	}
	n.ready("10.42.7.0/24")
	if err := n.add(p); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code uint, words string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), words) {
		t.Errorf("got %v, want code %d with words %q", err, code, words)
	}
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
	if b.ips[0] == a.ips[0] {
		t.Errorf("address %s given twice", b.ips[0])
	}
	expect(t, b, "pod from before the restart", a.ips[0]+":80", "a "+b.ips[0])
	if r := n.server.records.get(key{"dead", "eth0"}); r != nil {
		t.Error("the sandbox that died meanwhile is still known")
	}
	if _, err := os.Stat(filepath.Join(n.o.StateDir, "ipam", "10.42.7.0_24", dead.ips[0])); err == nil {
		t.Error("its address is still taken")
	}
	if err := n.add(b); err == nil {
		t.Error("ADD of what is attached already succeeded")
	}
}

func TestExhaustion(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/29") // .2 to .6
	pods := []*pod{}
	for i := range 5 {
		pods = append(pods, n.pod(fmt.Sprintf("pod%d", i)))
	}
	late := n.sandbox("late")
	err := n.add(late)
	wantCode(t, err, wire.CodeExhausted, "no free address in pod CIDR 10.42.7.0/29")
	if _, err := netlink.LinkByName(deviceName(key{"late", "eth0"})); err == nil {
		t.Error("a failed ADD left a device")
	}
	pods[2].Close() // a crash of the runtime: no DEL ever comes
	if err := n.add(late); err != nil {
		t.Fatal("the address of a dead sandbox was not collected:", err)
	}
	if late.ips[0] != pods[2].ips[0] {
		t.Errorf("got %s, want the dead sandbox's %s", late.ips[0], pods[2].ips[0])
	}
}

func TestGarbageCollection(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	keep, lost := n.pod("keep"), n.pod("lost", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": NetworkName, "type": PluginName, "socket": n.o.Socket,
		"cni.dev/valid-attachments": []map[string]string{{"containerID": "keep", "ifname": "eth0"}},
	}
	data, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := wire.Call(context.Background(), n.o.Socket, wire.Request{Command: wire.CommandGC, Config: data})
	if err != nil || resp.Error != nil {
		t.Fatal("GC:", err, resp.Error)
	}
	if _, err := netlink.LinkByName(deviceName(key{"lost", "eth0"})); err == nil {
		t.Error("GC left a device")
	}
	if out := nft(t, "list table inet coracle"); strings.Contains(out, lost.ips[0]) {
		t.Error("GC left host ports")
	}
	if err := n.runtime.CheckNetworkList(context.Background(), n.conflist(), keep.rt); err != nil {
		t.Error("GC harmed a valid attachment:", err)
	}
	resp, err = wire.Call(context.Background(), n.o.Socket, wire.Request{Command: wire.CommandStatus, Config: data})
	if err != nil || resp.Error != nil {
		t.Error("STATUS:", err, resp.Error)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	n.stop()
	if err := Cleanup(context.Background(), CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}); err != nil {
		t.Fatal(err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != "uplink" {
			t.Errorf("device %s is left", name)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst != nil && (strings.HasPrefix(r.Dst.String(), "10.42") || strings.HasPrefix(r.Dst.String(), "10.43")) {
			t.Errorf("route %v is left", r)
		}
	}
	if out := nft(t, "list tables"); strings.Contains(out, "coracle") {
		t.Errorf("tables left: %s", out)
	}
	for _, dir := range []string{n.o.StateDir, filepath.Join(n.o.ConfDir, conflistName)} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	if err := Cleanup(context.Background(), CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}); err != nil {
		t.Error("again:", err)
	}
}

func TestManyAtOnce(t *testing.T) {
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
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	list := n.conflist()
	start := time.Now()
	each(func(p *pod) error {
		_, err := n.runtime.AddNetworkList(context.Background(), list, p.rt)
		return err
	})
	t.Logf("%d ADDs at once took %v", many, time.Since(start))
	if out := nft(t, "list map inet coracle ports4"); strings.Count(out, ". 80") != many {
		t.Errorf("not every host port is there:\n%s", out)
	}
	seen := map[netip.Addr]bool{}
	for _, r := range n.server.records.list() {
		if seen[r.IPs[0]] {
			t.Errorf("address %s given twice", r.IPs[0])
		}
		seen[r.IPs[0]] = true
	}
	each(func(p *pod) error { return n.runtime.DelNetworkList(context.Background(), list, p.rt) })
	if left := n.server.records.list(); len(left) != 0 {
		t.Errorf("%d records left", len(left))
	}
	owners, err := n.server.ipam.owners()
	if err != nil || len(owners) != 0 {
		t.Errorf("addresses left: %v, %v", owners, err)
	}
}
