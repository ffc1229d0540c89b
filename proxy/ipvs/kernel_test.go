// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/guest"
	"github.com/coracle-k8s/coracle/internal/nstest"
	"github.com/coracle-k8s/coracle/internal/servicerules"
	"github.com/coracle-k8s/coracle/internal/testenv"
)

const (
	nodeAddr, nodeAddr6       = "192.0.2.1", "2001:db8::1"
	outsideAddr, outsideAddr6 = "192.0.2.2", "2001:db8::2"
	clusterIP, clusterIP6     = "10.43.0.9", "fd43::9"
	// patience is for what has to happen, on a kernel that is ten times slower than the machine's.
	patience = 3 * time.Minute
)

var podAddrs = []string{"10.42.0.2", "10.42.0.6"}

// TestKernel runs in a second kernel, Debian's User-Mode Linux, which has IPVS. It lacks nftables for IP, so that what is here
// is IPVS itself; the rules beside it are in proxy's TestServiceCases.
func TestKernel(t *testing.T) {
	if !guest.Inside() {
		if why := guest.Missing(); why != "" {
			testenv.Missing(t, testenv.UserModeLinux, "%s", why)
		}
		modules := []string{"ip_vs", "dummy", "veth", "nf_conntrack_netlink", "sctp", "ipv6"}
		for _, s := range Schedulers {
			modules = append(modules, "ip_vs_"+s)
		}
		guest.Run(t, guest.Options{Modules: modules, Within: 8 * time.Minute})
		return
	}
	b := newBed(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"connections", testConnections},
		{"the kernel has what is desired", testState},
		{"graceful termination", testTermination},
		{"a real server that comes back gets its weight back (kubernetes 92019)", testWeightComesBack},
		{"datagrams find another endpoint (kubernetes 71514)", testDatagrams},
		{"a port that is used again (kubernetes 81775)", testPortReuse},
		{"a node's address stays where it is (kubernetes 127410)", testNodeAddress},
		{"affinity", testAffinity},
		{"schedulers", testSchedulers},
		{"a restart keeps rules and connections", testRestart},
		{"both families", testFamilies},
		{"a thousand Services", testThousand},
		{"removed by the record", testRemove},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.start(t)
			c.run(t, b)
			for name := range maps.Clone(b.services) {
				b.delete(name)
			}
			b.sync(t)
		})
	}
}

// bed is a node, which is the process's own namespace, with two pods and a machine outside. What the rules would do is not here:
// pods answer by way of the node anyway.
type bed struct {
	pods     []*nstest.NS
	outside  *nstest.NS
	proxier  *Proxier
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	calls    *spy
}

func newBed(t *testing.T) *bed {
	b := &bed{outside: nstest.New(t), services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}}
	for _, f := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(f, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	b.outside.Link(t, "uplink", "eth0", []string{nodeAddr + "/24", nodeAddr6 + "/64"}, []string{outsideAddr + "/24", outsideAddr6 + "/64"})
	for i, ip := range podAddrs {
		ns := nstest.New(t)
		gw := netip.MustParseAddr(ip).Prev().String()
		gw6 := fmt.Sprintf("fd42:0:0:%d::1", i)
		ns.Link(t, fmt.Sprintf("pod%d", i), "eth0", []string{gw + "/30", gw6 + "/64"}, []string{ip + "/30", pod6(i) + "/64"})
		if err := ns.Do(func() error { return errors.Join(nstest.AddRoute("0.0.0.0/0", gw), nstest.AddRoute("::/0", gw6)) }); err != nil {
			t.Fatal(err)
		}
		b.pods = append(b.pods, ns)
		nstest.Serve(t, ns, ip, "tcp", ":8080")
		serveEcho(t, ns, ip)
	}
	err := b.outside.Do(func() error {
		return errors.Join(nstest.AddRoute("10.43.0.0/16", nodeAddr), nstest.AddRoute("fd43::/112", nodeAddr6))
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pod6(i int) string { return fmt.Sprintf("fd42:0:0:%d::2", i) }

// serveEcho answers lines and datagrams on port 9090 with the name and what came, for as long as somebody asks.
func serveEcho(t *testing.T, ns *nstest.NS, name string) {
	var l net.Listener
	var d net.PacketConn
	err := ns.Do(func() (err error) {
		if l, err = net.Listen("tcp", ":9090"); err == nil {
			d, err = net.ListenPacket("udp", ":9090")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); d.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s", name, buf[:n])
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := d.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = d.WriteTo([]byte(name+" "+string(buf[:n])), from)
		}
	}()
}

// start is a proxier that knows nothing yet, as after a restart.
func (b *bed) start(t *testing.T) {
	t.Helper()
	p, err := New(Options{
		NodeName: "n1", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")},
		NodePortAddresses: []string{nodeAddr + "/32", nodeAddr6 + "/128"}, Logger: klog.Background(),
		nft: func(f knftables.Family) (knftables.Interface, error) {
			return knftables.NewFake(f, servicerules.IPVSTable), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	b.proxier, b.calls = p, &spy{Table: p.families[0].apply.table}
	p.families[0].apply.table = b.calls
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	for name := range b.services {
		p.OnServiceUpdate(nil, b.services[name])
		p.OnEndpointSlice(b.slices[name], false)
	}
}

func (b *bed) sync(t *testing.T) {
	t.Helper()
	if err := b.proxier.Sync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
}

// service adds or changes one with its endpoints, which are pods by their index, and syncs.
func (b *bed) service(t *testing.T, name string, change func(*corev1.Service), port int32, pods ...int) {
	t.Helper()
	b.tell(name, change, port, pods...)
	b.sync(t)
}

func (b *bed) tell(name string, change func(*corev1.Service), port int32, pods ...int) {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Ports:                 []corev1.ServicePort{{Name: "x", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}},
		},
	}
	if change != nil {
		change(svc)
	}
	b.proxier.OnServiceUpdate(b.services[name], svc)
	b.services[name] = svc
	portName, yes, node := "x", true, "n1"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &svc.Spec.Ports[0].Protocol}},
	}
	for _, i := range pods {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{podAddrs[i]}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &yes},
		})
	}
	b.slices[name] = slice
	b.proxier.OnEndpointSlice(slice, false)
}

func (b *bed) delete(name string) {
	b.proxier.OnServiceUpdate(b.services[name], nil)
	b.proxier.OnEndpointSlice(b.slices[name], true)
	delete(b.services, name)
	delete(b.slices, name)
}

// spy counts what changes the kernel.
type spy struct {
	Table
	changes []string
}

func (s *spy) note(format string, args ...any) {
	s.changes = append(s.changes, fmt.Sprintf(format, args...))
}

func (s *spy) AddServer(k Key, v Server) error { s.note("add %s", k); return s.Table.AddServer(k, v) }
func (s *spy) UpdateServer(k Key, v Server) error {
	s.note("update %s", k)
	return s.Table.UpdateServer(k, v)
}
func (s *spy) DeleteServer(k Key) error { s.note("delete %s", k); return s.Table.DeleteServer(k) }
func (s *spy) AddReal(k Key, a netip.AddrPort) error {
	s.note("add %s to %s", a, k)
	return s.Table.AddReal(k, a)
}
func (s *spy) SetWeight(k Key, a netip.AddrPort, w int) error {
	s.note("weight %d of %s in %s", w, a, k)
	return s.Table.SetWeight(k, a, w)
}
func (s *spy) DeleteReal(k Key, a netip.AddrPort) error {
	s.note("delete %s from %s", a, k)
	return s.Table.DeleteReal(k, a)
}

// ask is nstest's, and says who answered.
func ask(from nstest.Doer, addr string) (string, error) {
	answer, err := nstest.Ask(from, addr)
	who, _, _ := strings.Cut(answer, " ")
	return who, err
}

func reaches(t *testing.T, from nstest.Doer, addr string) string {
	t.Helper()
	var who string
	testenv.Eventually(t, patience, addr+" answers", func() (err error) { who, err = ask(from, addr); return err })
	return who
}

// all returns who answers of several requests.
func all(t *testing.T, from nstest.Doer, addr string) []string {
	t.Helper()
	seen := map[string]bool{}
	for range 8 {
		seen[reaches(t, from, addr)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func testConnections(t *testing.T, b *bed) {
	b.service(t, "web", nil, 8080, 0, 1)
	for what, from := range map[string]nstest.Doer{"outside": b.outside, "pod": b.pods[0]} {
		for _, at := range []string{clusterIP + ":80", nodeAddr + ":30080"} {
			if what == "pod" { // a pod that meets itself needs a rule
				reaches(t, from, at)
				continue
			}
			if got := all(t, from, at); !slices.Equal(got, podAddrs) {
				t.Errorf("%s at %s: %v answer, want both pods", what, at, got)
			}
		}
	}
	b.service(t, "web", nil, 8080)
	testenv.Eventually(t, patience, "nobody answers", func() error {
		_, err := ask(b.outside, clusterIP+":80")
		if !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("got %v, want a refusal", err)
		}
		return nil
	})
	b.service(t, "web", nil, 8080, 1)
	if got := all(t, b.outside, clusterIP+":80"); !slices.Equal(got, podAddrs[1:]) {
		t.Errorf("%v answer, want the second pod", got)
	}
}

// dump is what the kernel has, in the form of State.
func (b *bed) dump(t *testing.T) string {
	t.Helper()
	s := newState()
	table := b.calls.Table
	servers, err := table.Servers()
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range servers {
		reals, err := table.Reals(k)
		if err != nil {
			t.Fatal(err)
		}
		vs := VirtualServer{Server: v}
		for _, r := range reals {
			if r.Weight != 1 {
				t.Errorf("%s in %s has weight %d", r.Addr, k, r.Weight)
			}
			vs.Reals = append(vs.Reals, r.Addr)
		}
		slices.SortFunc(vs.Reals, netip.AddrPort.Compare)
		s.Servers[k] = vs
	}
	link, err := netlink.LinkByName(servicerules.IPVSDevice)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		s.Addresses[netip.MustParseAddr(a.IP.String())] = true
	}
	return s.String()
}

// testState compares, and brings back what another program changed.
func testState(t *testing.T, b *bed) {
	foreign := &moby.Service{
		Address: net.ParseIP("192.0.2.77").To4(), Protocol: unix.IPPROTO_TCP, Port: 1, AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: 0xffffffff,
	}
	h := b.proxier.families[0].kernel.h
	if err := h.NewService(foreign); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.DelService(foreign); err != nil {
			t.Error("what is not ours was touched:", err)
		}
	}()
	external := func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.7"} }
	b.service(t, "web", external, 8080, 0, 1)
	b.service(t, "dns", func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.0.10", []string{"10.43.0.10"}
		s.Spec.Ports = []corev1.ServicePort{{Name: "x", Protocol: corev1.ProtocolUDP, Port: 53}}
		timeout := int32(30)
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}, 5353, 0)
	b.service(t, "calls", func(s *corev1.Service) {
		s.Annotations = map[string]string{SchedulerAnnotation: "lc"}
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.0.11", []string{"10.43.0.11"}
		s.Spec.Ports = []corev1.ServicePort{{Name: "x", Protocol: corev1.ProtocolSCTP, Port: 3868}}
	}, 3868, 1)
	want := `udp 10.43.0.10:53 rr affinity 30s
  10.42.0.2:5353
sctp 10.43.0.11:3868 lc
  10.42.0.6:3868
tcp 10.43.0.9:80 rr
  10.42.0.2:8080
  10.42.0.6:8080
tcp 192.0.2.1:30080 rr
  10.42.0.2:8080
  10.42.0.6:8080
tcp 203.0.113.7:80 rr
  10.42.0.2:8080
  10.42.0.6:8080
address 10.43.0.9
address 10.43.0.10
address 10.43.0.11
address 203.0.113.7
`
	same := func(when string) {
		t.Helper()
		if got := b.dump(t); sorted(got) != sorted(want) {
			t.Errorf("%s the kernel has\n%swant\n%s", when, got, want)
		}
	}
	same("at first")
	table := b.calls.Table
	web := Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}
	link, err := netlink.LinkByName(servicerules.IPVSDevice)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		table.DeleteReal(web, netip.MustParseAddrPort("10.42.0.2:8080")), table.SetWeight(web, netip.MustParseAddrPort("10.42.0.6:8080"), 7),
		table.AddReal(web, netip.MustParseAddrPort("10.42.0.99:8080")),
		table.DeleteServer(Key{corev1.ProtocolUDP, netip.MustParseAddr("10.43.0.10"), 53}),
		table.AddServer(Key{corev1.ProtocolTCP, netip.MustParseAddr("10.43.0.88"), 80}, Server{Scheduler: "rr"}), netlink.LinkDel(link),
	); err != nil {
		t.Fatal(err)
	}
	if err := b.proxier.Sync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	same("after another program's changes and a full sync")
	b.calls.changes = nil
	b.sync(t)
	if err := b.proxier.Sync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if len(b.calls.changes) > 0 {
		t.Errorf("nothing changed, and the kernel was told: %v", b.calls.changes)
	}
}

// sorted goes by blocks of lines: addresses sort as numbers or as text.
func sorted(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\n  ", " "), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// dial opens a connection that stays.
func dial(t *testing.T, from nstest.Doer, local, addr string) *net.TCPConn {
	t.Helper()
	var c net.Conn
	testenv.Eventually(t, patience, "connect to "+addr, func() error {
		return from.Do(func() (err error) {
			d := net.Dialer{Timeout: 20 * time.Second}
			if local != "" {
				if d.LocalAddr, err = net.ResolveTCPAddr("tcp", local); err != nil {
					return err
				}
			}
			c, err = d.Dial("tcp", addr)
			return err
		})
	})
	return c.(*net.TCPConn)
}

// echo says who answers on an open connection.
func echo(t *testing.T, c net.Conn) string {
	t.Helper()
	who, err := tryEcho(c, patience)
	if err != nil {
		t.Fatal("an open connection:", err)
	}
	return who
}

func tryEcho(c net.Conn, within time.Duration) (string, error) {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	who, _, _ := strings.Cut(string(buf[:n]), " ")
	return who, err
}

// abort ends a connection by a reset, which IPVS forgets within ten seconds; a proper end takes two minutes.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

func index(t *testing.T, addr string) int {
	t.Helper()
	i := slices.Index(podAddrs, addr)
	if i < 0 {
		t.Fatalf("%q is no pod", addr)
	}
	return i
}

func (b *bed) weight(t *testing.T, k Key, addr string) (weight int, there bool) {
	t.Helper()
	reals, err := b.calls.Table.Reals(k)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reals {
		if r.Addr.Addr().String() == addr {
			return r.Weight, true
		}
	}
	return 0, false
}

func testTermination(t *testing.T, b *bed) {
	k := Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}
	b.service(t, "web", nil, 9090, 0, 1)
	c := dial(t, b.outside, "", clusterIP+":80")
	who := echo(t, c)
	other := 1 - index(t, who)
	b.service(t, "web", nil, 9090, other)
	if w, there := b.weight(t, k, who); !there || w != 0 {
		t.Errorf("an endpoint with a connection is there: %t, with weight %d; want 0", there, w)
	}
	for range 5 {
		if got := echo(t, c); got != who {
			t.Fatalf("the open connection is answered by %s, want %s", got, who)
		}
		n := dial(t, b.outside, "", clusterIP+":80")
		if got := echo(t, n); got != podAddrs[other] {
			t.Errorf("a new connection goes to %s, which is on its way out", got)
		}
		abort(n)
	}
	if !b.proxier.Drains() {
		t.Error("nobody would look again")
	}
	abort(c)
	testenv.Eventually(t, patience, "the endpoint is gone", func() error {
		b.sync(t)
		if _, there := b.weight(t, k, who); there {
			return errors.New("it is still there")
		}
		return nil
	})
	if b.proxier.Drains() {
		t.Error("it is gone, and still said to drain")
	}
}

func testWeightComesBack(t *testing.T, b *bed) {
	k := Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}
	b.service(t, "web", nil, 9090, 0)
	c := dial(t, b.outside, "", clusterIP+":80")
	defer abort(c)
	echo(t, c)
	b.service(t, "web", nil, 9090, 1)
	if w, there := b.weight(t, k, podAddrs[0]); !there || w != 0 {
		t.Fatalf("it is there: %t, with weight %d", there, w)
	}
	b.service(t, "web", nil, 9090, 0, 1)
	if w, _ := b.weight(t, k, podAddrs[0]); w != 1 {
		t.Errorf("it has come back, with weight %d", w)
	}
	b.service(t, "web", nil, 9090, 1)
	b.start(t) // a restart in between, which remembers nothing
	b.tell("web", nil, 9090, 0, 1)
	b.sync(t)
	if w, _ := b.weight(t, k, podAddrs[0]); w != 1 {
		t.Errorf("it has come back after a restart, with weight %d", w)
	}
	echo(t, c)
}

func testDatagrams(t *testing.T, b *bed) {
	udp := func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }
	b.service(t, "web", udp, 9090, 0)
	var c net.Conn
	err := b.outside.Do(func() (err error) { c, err = net.Dial("udp", clusterIP+":80"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := func(want int) {
		t.Helper()
		testenv.Eventually(t, patience, "datagrams reach "+podAddrs[want], func() error {
			got, err := tryEcho(c, time.Second)
			if err == nil && got != podAddrs[want] {
				err = fmt.Errorf("%s answers", got)
			}
			return err
		})
	}
	answers(0)
	b.service(t, "web", udp, 9090, 1)
	if w, there := b.weight(t, Key{corev1.ProtocolUDP, netip.MustParseAddr(clusterIP), 80}, podAddrs[0]); there {
		t.Errorf("the endpoint that went is still there, with weight %d", w)
	}
	answers(1)
	b.service(t, "web", udp, 9090)
	b.service(t, "web", udp, 9090, 0)
	answers(0)
}

// testPortReuse comes from the same port again and again, while the endpoint moves.
func testPortReuse(t *testing.T, b *bed) {
	const local = outsideAddr + ":40001"
	for round := range 4 {
		b.service(t, "web", nil, 9090, round%2)
		c := dial(t, b.outside, local, clusterIP+":80")
		if got := echo(t, c); got != podAddrs[round%2] {
			t.Errorf("round %d: %s answers, want %s", round, got, podAddrs[round%2])
		}
		abort(c) // the client's port is free at once; IPVS and conntrack remember it
	}
}

func testNodeAddress(t *testing.T, b *bed) {
	lb := func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: nodeAddr}, {IP: outsideAddr}}
	}
	nstest.Serve(t, nstest.Own{}, "the node", "tcp", ":2222")
	b.proxier.o.Elsewhere = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr(outsideAddr)} }
	defer func() { b.proxier.o.Elsewhere = nil }()
	b.service(t, "web", lb, 8080, 0, 1)
	reaches(t, b.outside, nodeAddr+":80")
	if got := reaches(t, b.outside, nodeAddr+":2222"); got != "the" {
		t.Errorf("a port of the node's own is answered by %q", got)
	}
	if got := b.dump(t); strings.Contains(got, "address 192.0.2.") {
		t.Errorf("a node's address was taken:\n%s", got)
	}
	b.delete("web")
	b.sync(t)
	if got := reaches(t, b.outside, nodeAddr+":2222"); got != "the" {
		t.Errorf("after the Service is gone a port of the node's own is answered by %q", got)
	}
}

func testAffinity(t *testing.T, b *bed) {
	b.service(t, "web", func(s *corev1.Service) {
		timeout := int32(600)
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}, 8080, 0, 1)
	if got := all(t, b.outside, clusterIP+":80"); len(got) != 1 {
		t.Errorf("one client reached %v", got)
	}
}

func testSchedulers(t *testing.T, b *bed) {
	for _, name := range Schedulers {
		b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: name} }, 8080, 0, 1)
		servers, err := b.calls.Table.Servers()
		if err != nil {
			t.Fatal(err)
		}
		if got := servers[Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}].Scheduler; got != name {
			t.Errorf("the scheduler is %q, want %q", got, name)
		}
		reaches(t, b.outside, clusterIP+":80")
		// With one on its way out, a client must find the other, whatever its hash.
		c := dial(t, b.outside, "", clusterIP+":80")
		b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: name} }, 8080, 1)
		if got := all(t, b.outside, clusterIP+":80"); !slices.Equal(got, podAddrs[1:]) {
			t.Errorf("%s: %v answer, want the second pod alone", name, got)
		}
		abort(c)
	}
	b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: "nonsense"} }, 8080, 0)
	servers, err := b.calls.Table.Servers()
	if got := servers[Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}].Scheduler; err != nil || got != DefaultScheduler {
		t.Errorf("in the place of a scheduler that does not exist there is %q (%v)", got, err)
	}
}

func testRestart(t *testing.T, b *bed) {
	b.service(t, "web", nil, 9090, 0, 1)
	c := dial(t, b.outside, "", clusterIP+":80")
	defer abort(c)
	who := echo(t, c)
	b.start(t)
	b.calls.changes = nil
	b.sync(t)
	if len(b.calls.changes) > 0 {
		t.Errorf("a restart told the kernel: %v", b.calls.changes)
	}
	if got := echo(t, c); got != who {
		t.Errorf("the connection is answered by %s, want %s as before", got, who)
	}
}

func testFamilies(t *testing.T, b *bed) {
	b.service(t, "web", func(s *corev1.Service) {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, clusterIP6)
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPv6Protocol)
	}, 8080, 0)
	six := b.slices["web"].DeepCopy()
	six.Name, six.AddressType, six.Endpoints[0].Addresses = "web-6", discoveryv1.AddressTypeIPv6, []string{pod6(1)}
	b.proxier.OnEndpointSlice(six, false)
	defer b.proxier.OnEndpointSlice(six, true)
	b.sync(t)
	for _, at := range []string{"[" + clusterIP6 + "]:80", "[" + nodeAddr6 + "]:30080"} {
		if got := reaches(t, b.outside, at); got != podAddrs[1] {
			t.Errorf("%s is answered by %s", at, got)
		}
	}
	if got := reaches(t, b.outside, clusterIP+":80"); got != podAddrs[0] {
		t.Errorf("IPv4 is answered by %s", got)
	}
}

func testThousand(t *testing.T, b *bed) {
	const number = 1000
	for i := range number {
		b.tell(fmt.Sprintf("s%d", i), func(s *corev1.Service) {
			s.Spec.ClusterIP = fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
			s.Spec.Ports[0].NodePort = int32(30000 + i)
		}, 8080, 0, 1)
	}
	start := time.Now()
	b.sync(t)
	t.Logf("%d Services with 2 endpoints and a node port each, written first: %v, %d calls", number, time.Since(start), len(b.calls.changes))
	servers, err := b.calls.Table.Servers()
	if err != nil || len(servers) != 2*number {
		t.Errorf("the kernel has %d virtual servers, want %d (%v)", len(servers), 2*number, err)
	}
	reaches(t, b.outside, "10.43.5.200:80")
	b.calls.changes = nil
	start = time.Now()
	b.tell("s500", func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.3.101", []string{"10.43.3.101"}
		s.Spec.Ports[0].NodePort = 30500
	}, 8080, 1)
	b.sync(t)
	t.Logf("one endpoint less among them: %v, %v", time.Since(start), b.calls.changes)
	if len(b.calls.changes) != 2 {
		t.Errorf("one endpoint's end took %d calls, want one for the cluster address and one for the node port", len(b.calls.changes))
	}
	start = time.Now()
	if err := b.proxier.Sync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	t.Logf("a full sync that finds nothing to do: %v", time.Since(start))
}

func testRemove(t *testing.T, b *bed) {
	b.service(t, "web", nil, 8080, 0)
	record := t.TempDir() + "/record"
	if err := servicerules.Write(record, servicerules.IPVS); err != nil {
		t.Fatal(err)
	}
	// Of nftables this kernel knows nothing: that part is tried elsewhere.
	if _, err := servicerules.Remove(record); err != nil && !strings.Contains(err.Error(), "nftables") {
		t.Fatal(err)
	}
	servers, err := b.calls.Table.Servers()
	if err != nil || len(servers) > 0 {
		t.Errorf("left: %v, %v", servers, err)
	}
	if _, err := netlink.LinkByName(servicerules.IPVSDevice); err == nil {
		t.Error("the device is still there")
	}
	if err := b.proxier.Sync(context.WithoutCancel(t.Context()), true); err != nil {
		t.Fatal(err)
	}
	reaches(t, b.outside, clusterIP+":80")
}
