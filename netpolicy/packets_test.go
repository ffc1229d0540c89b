// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/nfttable"
	"github.com/coracle-k8s/coracle/internal/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

// patience is for what has to happen; nothing waits so long for what must not happen, since refusals are answers.
const patience = time.Minute

// lab is a world whose pods of this node are network namespaces, routed by the process's own, which is the node.
type lab struct {
	*world
	t  *testing.T
	ns map[netip.Addr]*nstest.NS
}

// Ports at which all pods of a lab serve, by TCP and UDP.
var served = []int32{53, 80, 81, 8080}

func newLab(t *testing.T, w *world) *lab {
	nstest.RequireNFT(t)
	sysctls(t, "ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/icmp_ratelimit=0", "ipv6/icmp/ratelimit=0")
	l := &lab{w, t, map[netip.Addr]*nstest.NS{}}
	for i, b := range w.Sandboxes {
		ns := nstest.New(t)
		device := fmt.Sprint("vethcor", i)
		four, six := b.IPs[0].String(), b.IPs[1].String()
		ns.Link(t, device, "eth0", nil, []string{four + "/32", six + "/128"})
		if err := wire(ns, device, b.IPs); err != nil {
			t.Fatal(err)
		}
		for _, ip := range b.IPs {
			l.ns[ip] = ns
		}
		l.serve(ns)
	}
	t.Cleanup(func() {
		if err := Remove(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// The Ethernet addresses of both ends of every link.
var hostMAC, podMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}

// wire routes between a pod and the node; neither has to ask for the other.
func wire(ns *nstest.NS, device string, ips []netip.Addr) error {
	host, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(host, hostMAC); err != nil {
		return err
	}
	errs := []error{ns.Do(func() error { return plug() })}
	for _, ip := range ips {
		errs = append(errs, neighbour(host, ip, podMAC),
			netlink.RouteAdd(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: netlink.NewIPNet(ip.AsSlice()), Scope: netlink.SCOPE_LINK}))
	}
	return errors.Join(errs...)
}

func plug() error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, podMAC); err != nil {
		return err
	}
	var errs []error
	for _, gateway := range []string{"169.254.1.1", "fe80::1"} {
		ip := netip.MustParseAddr(gateway)
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		errs = append(errs, neighbour(link, ip, hostMAC), netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Gw: ip.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: &net.IPNet{IP: everything.Addr().AsSlice(), Mask: net.CIDRMask(0, everything.Addr().BitLen())},
		}))
	}
	return errors.Join(errs...)
}

func neighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) error {
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
}

func sysctls(t *testing.T, all ...string) {
	t.Helper()
	for _, s := range all {
		name, value, _ := strings.Cut(s, "=")
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// serve answers by TCP and UDP whatever comes, with what came, until the test ends.
func (l *lab) serve(ns *nstest.NS) {
	var wg sync.WaitGroup
	var closers []io.Closer
	l.t.Cleanup(func() {
		for _, c := range closers {
			c.Close()
		}
		wg.Wait()
	})
	for _, port := range served {
		var tcp net.Listener
		var udp net.PacketConn
		err := ns.Do(func() (err error) {
			if tcp, err = net.Listen("tcp", fmt.Sprint(":", port)); err == nil {
				udp, err = net.ListenPacket("udp", fmt.Sprint(":", port))
			}
			return err
		})
		if err != nil {
			l.t.Fatal(err)
		}
		closers = append(closers, tcp, udp)
		wg.Go(func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer c.Close()
					defer context.AfterFunc(l.t.Context(), func() { c.Close() })()
					_, _ = io.Copy(c, c)
				})
			}
		})
		wg.Go(func() {
			b := make([]byte, 100)
			for {
				n, from, err := udp.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = udp.WriteTo(b[:n], from)
				}
			}
		})
	}
}

// apply puts the rules of the world into the kernel.
func (l *lab) apply(tab *table) {
	l.t.Helper()
	if err := tab.apply(l.t.Context(), Desired(l.State, DefaultLimits()).Ruleset); err != nil {
		l.t.Fatal(err)
	}
}

var errRefused = errors.New("refused")

// refused turns the kernel's several words into one.
func refused(err error) error {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.EACCES, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return errRefused
		}
	}
	return err
}

// try opens the connection. The error is errRefused when it was, and another one when nothing was to be heard.
func (l *lab) try(c connection) error {
	var conn net.Conn
	err := l.ns[c.from].Do(func() (err error) {
		d := net.Dialer{LocalAddr: local(c), Timeout: patience}
		conn, err = d.Dial(strings.ToLower(string(c.proto)), netip.AddrPortFrom(c.to, uint16(c.port)).String())
		return err
	})
	if err != nil {
		return refused(err)
	}
	defer conn.Close()
	return ping(conn)
}

func local(c connection) net.Addr {
	if c.proto == corev1.ProtocolUDP {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
}

// ping sends something and waits for it to come back, or for a refusal. Datagrams may be lost, and refusals of them.
func ping(conn net.Conn) error {
	deadline := time.Now().Add(patience)
	b := make([]byte, 1)
	_, datagrams := conn.(*net.UDPConn)
	for {
		if _, err := conn.Write([]byte("x")); err != nil {
			return refused(err)
		}
		next := deadline
		if datagrams {
			next = time.Now().Add(200 * time.Millisecond)
		}
		_ = conn.SetReadDeadline(next)
		_, err := conn.Read(b)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, io.EOF):
			return errRefused
		case !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline):
			return refused(err)
		}
	}
}

// truth tries all connections between the lab's pods and compares with the model.
func (l *lab) truth(r *rand.Rand, share int) (allowed, denied int) {
	l.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	several := make(chan struct{}, 16) // as many connections at a time
	for _, c := range l.connections(served) {
		if l.ns[c.from] == nil || l.ns[c.to] == nil || c.proto == corev1.ProtocolSCTP || r.IntN(share) > 0 {
			continue
		}
		several <- struct{}{}
		wg.Go(func() {
			defer func() { <-several }()
			want := l.model.allowed(c, l.here)
			err := l.try(c)
			mu.Lock()
			defer mu.Unlock()
			if want && err != nil || !want && !errors.Is(err, errRefused) {
				l.t.Errorf("%v to %v %v %d: %v; allowed: %v", c.from, c.to, c.proto, c.port, err, want)
			}
			if want {
				allowed++
			} else {
				denied++
			}
		})
	}
	wg.Wait()
	return allowed, denied
}

// TestTruthTable opens real connections between a dozen pods, over the listed policies and generated ones.
func TestTruthTable(t *testing.T) {
	w := dozen()
	for i, p := range w.Pods { // all on this node: those of others are not there
		if p.Spec.NodeName != w.Node {
			ips := []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.42.1.", 100+i)), netip.MustParseAddr(fmt.Sprintf("fd00:42:0:1::%x", 100+i))}
			for _, old := range p.Status.PodIPs {
				delete(w.model.pods, netip.MustParseAddr(old.IP))
			}
			p.Spec.NodeName, p.Status.PodIP = w.Node, ips[0].String()
			p.Status.PodIPs = []corev1.PodIP{{IP: ips[0].String()}, {IP: ips[1].String()}}
			w.Sandboxes = append(w.Sandboxes, Sandbox{ID: p.Namespace + p.Name + "_eth0", Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), IPs: ips})
			w.model.pods[ips[0]], w.model.pods[ips[1]] = p, p
		}
	}
	l := newLab(t, w)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var tab table
	allowed, denied := 0, 0
	check := func(name string, share int) {
		t.Helper()
		l.apply(&tab)
		if !tab.intact() {
			t.Errorf("%s: the table is not counted as whole", name)
		}
		a, d := l.truth(r, share)
		allowed, denied = allowed+a, denied+d
		if t.Failed() {
			t.Fatalf("policies %q (seed %d)\n%s", name, seed, whole(tab.applied))
		}
	}
	for _, c := range listed {
		l.Policies = nil
		l.policy(t, c.namespace, "p", c.spec)
		check(c.name, 12)
	}
	for i := range 15 {
		l.Policies = nil
		for p := range 1 + r.IntN(6) {
			l.add(generate(r, fmt.Sprint("p", p)))
		}
		check(fmt.Sprint("generated ", i), 8)
	}
	l.Policies, l.model.policies = nil, nil
	check("none", 12)
	if ok, err := nfttable.Exists(kernelTable); ok || err != nil {
		t.Errorf("a table without policies: %v, %v", ok, err)
	}
	t.Logf("%d connections were allowed and %d refused", allowed, denied)
	if allowed == 0 || denied == 0 {
		t.Error("this proves nothing")
	}
}

// addressOf is a pod's of this node.
func (l *lab) addressOf(namespace, name string, family int) netip.Addr {
	for _, b := range l.Sandboxes {
		if b.Namespace == namespace && b.Name == name {
			return b.IPs[map[int]int{4: 0, 6: 1}[family]]
		}
	}
	l.t.Fatalf("no pod %s/%s here", namespace, name)
	return netip.Addr{}
}

// TestRevoked opens connections and forbids them by a policy: both ends have to hear of it, the others nothing.
func TestRevoked(t *testing.T) {
	l := newLab(t, dozen())
	for _, d := range []struct{ name, namespace, spec string }{
		{"by the server", "y", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
		{"by the client", "x", `{podSelector: {}, egress: [{to: [{podSelector: {}}]}], policyTypes: [Egress]}`},
	} {
		for _, family := range []int{4, 6} {
			t.Run(fmt.Sprint(d.name, family), func(t *testing.T) {
				var tab table
				l.Policies, l.model.policies = nil, nil
				l.policy(t, "x", "a", `{podSelector: {}, ingress: [{}], egress: [{to: [{podSelector: {}}]}, {to: [{namespaceSelector: {}}]}], policyTypes: [Ingress, Egress]}`)
				l.policy(t, "y", "a", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {from: [{namespaceSelector: {}}]}]}`)
				l.apply(&tab)
				from, to, same := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family), l.addressOf("x", "p1", family)
				open := func(c connection) net.Conn {
					var conn net.Conn
					err := l.ns[c.from].Do(func() (err error) {
						conn, err = net.DialTimeout(strings.ToLower(string(c.proto)), netip.AddrPortFrom(c.to, uint16(c.port)).String(), patience)
						return err
					})
					if err == nil {
						err = ping(conn)
					}
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { conn.Close() })
					return conn
				}
				tcp, udp := open(connection{from, to, corev1.ProtocolTCP, 80}), open(connection{from, to, corev1.ProtocolUDP, 53})
				stays, self := open(connection{from, same, corev1.ProtocolTCP, 80}), open(connection{from, from, corev1.ProtocolTCP, 80})
				l.Policies = nil
				l.policy(t, d.namespace, "a", d.spec)
				l.apply(&tab)
				if err := ping(tcp); !errors.Is(err, errRefused) {
					t.Errorf("the TCP connection that is forbidden now: %v", err)
				}
				if err := ping(udp); !errors.Is(err, errRefused) {
					t.Errorf("the UDP flow that is forbidden now: %v", err)
				}
				if err := errors.Join(ping(stays), ping(self)); err != nil {
					t.Errorf("connections that are still allowed: %v", err)
				}
				l.Policies = nil
				l.apply(&tab)
				if err := errors.Join(ping(stays), l.try(connection{from, to, corev1.ProtocolTCP, 80}), ping(udp)); err != nil {
					t.Errorf("without policies: %v", err)
				}
			})
		}
	}
}

// TestNode reaches its own pods always, and is reached by them as policies say; the cluster's DNS among that.
func TestNode(t *testing.T) {
	l := newLab(t, dozen())
	node := netip.MustParseAddr("192.0.2.1")
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.AddrReplace(lo, &netlink.Addr{IPNet: netlink.NewIPNet(node.AsSlice())})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.AddrDel(lo, &netlink.Addr{IPNet: netlink.NewIPNet(node.AsSlice())}) })
	for _, port := range []int{10053, 10250} {
		nstest.Serve(t, nstest.Own{}, "node", "tcp", fmt.Sprintf("%s:%d", node, port))
	}
	l.DNS = DNS{Servers: []netip.AddrPort{netip.AddrPortFrom(node, 10053)}, Service: []netip.Addr{netip.MustParseAddr("10.43.0.10")}}
	pod := l.addressOf("x", "p0", 4)
	reach := func(port int32) error {
		var conn net.Conn
		err := l.ns[pod].Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", fmt.Sprintf("%s:%d", node, port), patience)
			return err
		})
		if err == nil {
			conn.Close()
		}
		return refused(err)
	}
	var tab table
	for _, c := range []struct {
		name, spec string
		dns, other bool
	}{
		{"nothing", `{podSelector: {}, policyTypes: [Ingress, Egress]}`, false, false},
		{"DNS as everybody writes it", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}]}`, true, false},
		{"DNS by UDP alone", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}`, false, false},
		{"the node", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 10250}]}]}`, false, true},
		{"no egress policy", `{podSelector: {}, policyTypes: [Ingress]}`, true, true},
	} {
		l.Policies = nil
		l.policy(t, "x", "p", c.spec)
		l.apply(&tab)
		for port, want := range map[int32]bool{10053: c.dns, 10250: c.other} {
			if err := reach(port); want != (err == nil) || err != nil && !errors.Is(err, errRefused) {
				t.Errorf("%s: port %d of the node: %v; allowed: %v", c.name, port, err, want)
			}
		}
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(pod, 80).String(), patience)
		if err == nil {
			err = ping(conn)
			conn.Close()
		}
		if err != nil {
			t.Errorf("%s: the node does not reach its pod: %v", c.name, err)
		}
	}
}

// TestDifferencesLeaveNoGap changes policies while connections are opened that are forbidden throughout.
func TestDifferencesLeaveNoGap(t *testing.T) {
	l := newLab(t, dozen())
	var tab table
	change := func(i int) {
		l.Policies = nil
		l.policy(t, "x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
		l.policy(t, "x", "other", fmt.Sprintf(`{podSelector: {}, ingress: [{ports: [{port: %d}]}]}`, 9000+i))
		if i%5 == 4 {
			tab.applied = nil // as after a restart: all is written
		}
		l.apply(&tab)
	}
	change(0)
	done := make(chan struct{})
	var wg sync.WaitGroup
	tries := 0
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			c := connection{l.addressOf("y", "p0", 4), l.addressOf("x", "p0", 4), corev1.ProtocolTCP, 80}
			if err := l.try(c); !errors.Is(err, errRefused) {
				t.Errorf("a forbidden connection while policies change: %v", err)
			}
			tries++
		}
	})
	for i := range 40 {
		change(i)
	}
	close(done)
	wg.Wait()
	if tries == 0 {
		t.Error("this proves nothing")
	}
	t.Logf("%d attempts over 40 changes", tries)
}

// TestNoticesChanges has somebody else change the table in every way.
func TestNoticesChanges(t *testing.T) {
	l := newLab(t, dozen())
	l.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}`)
	for _, change := range []string{
		"delete table inet coracle-policy",
		"flush ruleset",
		"flush table inet coracle-policy",
		"flush chain inet coracle-policy forward",
		"flush chain inet coracle-policy refuse",
		"flush map inet coracle-policy in4",
		"delete element inet coracle-policy in6 { " + l.addressOf("x", "p1", 6).String() + " }",
	} {
		var tab table
		l.apply(&tab)
		if !tab.intact() {
			t.Fatal("the table is not counted as whole")
		}
		if err := run(t.Context(), []byte(change)); err != nil {
			t.Fatal(err)
		}
		if tab.intact() {
			t.Errorf("nobody noticed: %s", change)
		}
		l.apply(&tab)
		if err := l.try(connection{l.addressOf("y", "p0", 4), l.addressOf("x", "p0", 4), corev1.ProtocolTCP, 80}); err != nil {
			t.Errorf("after %q was mended: %v", change, err)
		}
		if err := l.try(connection{l.addressOf("y", "p0", 6), l.addressOf("x", "p0", 6), corev1.ProtocolTCP, 80}); !errors.Is(err, errRefused) {
			t.Errorf("after %q was mended, a forbidden connection: %v", change, err)
		}
	}
}
