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
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/kubernetes/pkg/proxy/conntrack"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

const (
	nodeAddr, nodeAddr6   = netns.NodeIP, netns.NodeIP6
	outsideAddr           = netns.OutsideIP
	clusterIP, clusterIP6 = "10.43.0.9", "fd43::9"
	patience              = netns.Patience
)

var podAddrs = netns.PodIPs

// TestServicesInAKernelWithIPVS runs in a second kernel, Debian's User-Mode Linux, which has IPVS. It lacks nftables
// for IP, so that what is here is IPVS itself; the rules beside it are in proxy's TestServiceCases.
func TestServicesInAKernelWithIPVS(t *testing.T) {
	if !uml.Inside() {
		modules := []string{"ip_vs", "dummy", "veth", "nf_conntrack_netlink", "sctp", "ipv6"}
		for _, s := range Schedulers {
			modules = append(modules, "ip_vs_"+s)
		}
		uml.Run(t, uml.Options{Modules: modules, Within: 8 * time.Minute})
		return
	}
	b := newBed(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *bed)
	}{
		{"the kernel is suitable, and stays as it is", testSuitable},
		{"the kernel has what is desired", testState},
		{"graceful termination", testTermination},
		{"an idle connection is remembered (kubernetes 80298)", testIdle},
		{"a real server that comes back gets its weight back (kubernetes 92019)", testWeightComesBack},
		{"a node's address stays where it is (kubernetes 127410)", testNodeAddress},
		{"schedulers", testSchedulers},
		{"the node's scheduler", testNodesScheduler},
		{"a scheduler that the kernel lacks", testLackingScheduler},
		{"a Service that the kernel refuses", testRefusedService},
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
	t.Run("the module is unloaded", func(t *testing.T) {
		b.start(t)
		testLost(t, b)
	})
}

// found is what the kernel is found to lack.
func found(t *testing.T, schedulers ...string) error {
	t.Helper()
	p := testenv.Must(Find(schedulers, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}))(t)
	return p.Err()
}

func testSuitable(t *testing.T, b *bed) {
	before := b.dump(t)
	testenv.Check(t, found(t, Schedulers...))
	testenv.Fails(t, testenv.Err(netlink.LinkByName("trial")), "the device of the trial is left")
	if got := b.dump(t); got != before {
		t.Errorf("the kernel has\n%s\nand had\n%s", got, before)
	}
}

// testLost comes last: nothing can be served after it.
func testLost(t *testing.T, b *bed) {
	b.service(t, "web", nil, 8080, 0, 1)
	for _, f := range b.proxier.families {
		testenv.NoError(t, f.kernel.h.Flush()) // as another program's administrator does; virtual servers hold the module
	}
	for _, s := range Schedulers {
		if err := unix.DeleteModule("ip_vs_"+s, unix.O_NONBLOCK); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
	// Network namespaces of trials let go of it a moment after they have ended.
	testenv.Eventually(t, patience, "the module ip_vs is unloaded", func() error { return unix.DeleteModule("ip_vs", unix.O_NONBLOCK) })
	if ok, err := b.proxier.Intact(); ok || err != nil {
		t.Errorf("what was made is said to be there: %v, %v", ok, err)
	}
	testenv.ErrorIs(t, b.proxier.Sync(t.Context(), true), ErrLost, "a sync ends with")
	testenv.WantError(t, found(t, DefaultScheduler), "the module ip_vs")
}

// testState compares, and brings back what another program changed.
func testState(t *testing.T, b *bed) {
	foreign := &moby.Service{
		Address: net.ParseIP("192.0.2.77").To4(), Protocol: unix.IPPROTO_TCP, Port: 1, AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: 0xffffffff,
	}
	h := b.proxier.families[0].kernel.h
	testenv.NoError(t, h.NewService(foreign))
	defer func() {
		testenv.Check(t, h.DelService(foreign), "what is not ours was touched")
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
	link := testenv.Must(netlink.LinkByName(nft.IPVSDevice))(t)
	testenv.NoError(t, errors.Join(
		table.DeleteReal(web, netip.MustParseAddrPort("10.42.0.2:8080")), table.SetWeight(web, netip.MustParseAddrPort("10.42.0.6:8080"), 7),
		table.AddReal(web, netip.MustParseAddrPort("10.42.0.99:8080")),
		table.DeleteServer(Key{corev1.ProtocolUDP, netip.MustParseAddr("10.43.0.10"), 53}),
		table.AddServer(Key{corev1.ProtocolTCP, netip.MustParseAddr("10.43.0.88"), 80}, Server{Scheduler: "rr"}), netlink.LinkDel(link),
	))
	testenv.NoError(t, b.proxier.Sync(t.Context(), true))
	same("after another program's changes and a full sync")
	b.calls.changes = nil
	b.sync(t)
	testenv.NoError(t, b.proxier.Sync(t.Context(), true))
	testenv.False(t, len(b.calls.changes) > 0, "nothing changed, and the kernel was changed: %v", b.calls.changes)
}

func testTermination(t *testing.T, b *bed) {
	k := Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}
	b.service(t, "web", nil, 9090, 0, 1)
	c := dial(t, b.outside, clusterIP+":80")
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
		n := dial(t, b.outside, clusterIP+":80")
		if got := echo(t, n); got != podAddrs[other] {
			t.Errorf("a new connection goes to %s, which is on its way out", got)
		}
		abort(n)
	}
	testenv.True(t, b.proxier.HasDraining(), "it would not be swept again")
	abort(c)
	testenv.Eventually(t, patience, "the endpoint is gone", func() error {
		b.sync(t)
		if _, there := b.weight(t, k, who); there {
			return errors.New("it is still there")
		}
		return nil
	})
	testenv.False(t, b.proxier.HasDraining(), "it is gone, and still said to drain")
}

// testIdle: IPVS forgets a connection on which nothing is said after a day, not after a quarter of an hour; and who
// asked for longer gets it.
func testIdle(t *testing.T, b *bed) {
	k := b.proxier.families[0].kernel
	for _, want := range []time.Duration{idleMost, 2 * idleMost} {
		if want > idleMost {
			testenv.NoError(t, k.h.SetConfig(&moby.Config{TimeoutTCP: want}))
			b.start(t)
		}
		have := testenv.Must(k.h.GetConfig())(t)
		if have.TimeoutTCP != want || have.TimeoutTCPFin == 0 || have.TimeoutUDP == 0 {
			t.Errorf("IPVS' times are %+v, want %v for TCP and its own for the others", have, want)
		}
	}
}

func testWeightComesBack(t *testing.T, b *bed) {
	k := Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}
	b.service(t, "web", nil, 9090, 0)
	c := dial(t, b.outside, clusterIP+":80")
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
	b.setService("web", nil, 9090, 0, 1)
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
	testenv.NoError(t, b.outside.Do(func() (err error) { c, err = net.Dial("udp", clusterIP+":80"); return err }))
	defer c.Close()
	answers := func(want int) {
		t.Helper()
		testenv.Eventually(t, patience, "datagrams reach "+podAddrs[want], func() error {
			got, err := netns.Say(c, time.Second)
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

func testNodeAddress(t *testing.T, b *bed) {
	lb := func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: nodeAddr}, {IP: outsideAddr}}
	}
	netns.Serve(t, netns.Own{}, "the node", "tcp", ":2222")
	b.proxier.o.Protected = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr(outsideAddr)} }
	defer func() { b.proxier.o.Protected = nil }()
	b.service(t, "web", lb, 8080, 0, 1)
	reaches(t, b.outside, nodeAddr+":80")
	testenv.Equal(t, reaches(t, b.outside, nodeAddr+":2222"), "the", "a port of the node's own is answered by")
	if got := b.dump(t); strings.Contains(got, "address 192.0.2.") {
		t.Errorf("a node's address was taken:\n%s", got)
	}
	b.delete("web")
	b.sync(t)
	testenv.Equal(t, reaches(t, b.outside, nodeAddr+":2222"), "the", "after the Service is gone a port of the node's own is answered by")
}

func testSchedulers(t *testing.T, b *bed) {
	for _, name := range Schedulers {
		b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: name} }, 8080, 0, 1)
		b.scheduled(t, name)
		reaches(t, b.outside, clusterIP+":80")
		// With one on its way out, a client must find the other, whatever its hash.
		c := dial(t, b.outside, clusterIP+":80")
		b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: name} }, 8080, 1)
		if got := all(t, b.outside, clusterIP+":80"); !slices.Equal(got, podAddrs[1:]) {
			t.Errorf("%s: %v answer, want the second pod alone", name, got)
		}
		abort(c)
	}
	b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: "nonsense"} }, 8080, 0)
	b.scheduled(t, DefaultScheduler) // in the place of one that does not exist
}

// testNodesScheduler: --ipvs-scheduler is for Services that name none.
func testNodesScheduler(t *testing.T, b *bed) {
	b.scheduler = "wlc"
	defer func() { b.scheduler = "" }()
	b.start(t)
	b.service(t, "web", nil, 8080, 0)
	b.scheduled(t, "wlc")
	b.service(t, "web", func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: "sh"} }, 8080, 0)
	b.scheduled(t, "sh")
	reaches(t, b.outside, clusterIP+":80")
}

// testLackingScheduler: rr stands in for it, which is said once, and other Services do not notice.
func testLackingScheduler(t *testing.T, b *bed) {
	const lacking = "mh"
	// The kernel would load the module again.
	testenv.NoError(t, os.WriteFile("/proc/sys/kernel/modprobe", []byte("/nonexistent\n"), 0))
	testenv.NoError(t, unix.DeleteModule("ip_vs_"+lacking, unix.O_NONBLOCK), "taking the module away")
	if err := found(t, DefaultScheduler, lacking); err == nil || err.Error() != "the kernel lacks the module ip_vs_"+lacking {
		t.Errorf("the kernel lacks a scheduler, and is found to be so: %v", err)
	}
	for _, nodes := range []bool{false, true} {
		b.log = ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
		asks := map[string]string{SchedulerAnnotation: lacking}
		if nodes {
			asks, b.scheduler = nil, lacking
		}
		b.start(t)
		setDesired := func(s *corev1.Service) {
			s.Name, s.Annotations, s.Spec.Ports[0].NodePort = "wish", asks, 30081
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.0.8", []string{"10.43.0.8"}
		}
		b.service(t, "wish", setDesired, 8080, 0, 1)
		testenv.EqualSlices(t, all(t, b.outside, "10.43.0.8:80"), podAddrs, "the Service that asks for it is answered by")
		testDatagrams(t, b)
		b.delete("web")
		b.sync(t)
		if got := b.dump(t); strings.Contains(got, clusterIP+"\n") || !strings.Contains(got, "address 10.43.0.8\n") {
			t.Errorf("another Service is gone, and the kernel has\n%s", got)
		}
		testenv.Check(t, b.proxier.Sync(t.Context(), true))
		if got := logged(t, b.log); strings.Count(got, "This kernel lacks") != 1 || !strings.Contains(got, "ip_vs_"+lacking) {
			t.Errorf("said once should be what the kernel lacks; said is\n%s", got)
		}
		b.delete("wish")
		b.sync(t)
	}
	b.scheduler, b.log = "", klog.Logger{}
}

// testRefusedService: each sync fails, and the others are served as if none did.
func testRefusedService(t *testing.T, b *bed) {
	cleaned := &cleanings{Interface: b.proxier.families[0].conntrack}
	b.proxier.families[0].conntrack = cleaned
	b.calls.refuses, b.trouble = Key{corev1.ProtocolTCP, netip.MustParseAddr("10.43.0.8"), 80}, errRefused
	b.service(t, "wish", func(s *corev1.Service) {
		s.Name, s.Spec.Type, s.Spec.Ports[0].NodePort = "wish", corev1.ServiceTypeClusterIP, 0
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.0.8", []string{"10.43.0.8"}
	}, 8080, 0)
	testDatagrams(t, b)
	before := cleaned.times
	testenv.True(t, before != 0, "connections were not swept that lead to endpoints that are gone")
	b.delete("web")
	b.sync(t)
	if got := b.dump(t); strings.Contains(got, clusterIP) || cleaned.times == before {
		t.Errorf("a Service is gone; connections were cleaned %d times since, and the kernel has\n%s", cleaned.times-before, got)
	}
	b.trouble, b.calls.refuses = nil, Key{}
	b.sync(t)
	if got := reaches(t, b.outside, "10.43.0.8:80"); got != podAddrs[0] {
		t.Errorf("what was refused is answered by %q afterwards", got)
	}
}

// cleanings counts them.
type cleanings struct {
	conntrack.Interface
	times int
}

func (c *cleanings) ListEntries(family uint8) ([]*netlink.ConntrackFlow, error) {
	c.times++
	return c.Interface.ListEntries(family)
}

// scheduled compares the first Service's scheduler in the kernel.
func (b *bed) scheduled(t *testing.T, want string) {
	t.Helper()
	servers, err := b.calls.Table.Servers()
	if got := servers[Key{corev1.ProtocolTCP, netip.MustParseAddr(clusterIP), 80}].Scheduler; err != nil || got != want {
		t.Errorf("the scheduler is %q (%v), want %q", got, err, want)
	}
}

func testRestart(t *testing.T, b *bed) {
	b.service(t, "web", nil, 9090, 0, 1)
	c := dial(t, b.outside, clusterIP+":80")
	defer abort(c)
	who := echo(t, c)
	b.start(t)
	b.calls.changes = nil
	b.sync(t)
	testenv.False(t, len(b.calls.changes) > 0, "a restart changed the kernel: %v", b.calls.changes)
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
	six.Name, six.AddressType, six.Endpoints[0].Addresses = "web-6", discoveryv1.AddressTypeIPv6, []string{netns.PodIP6(1)}
	b.proxier.OnEndpointSlice(six, false)
	defer b.proxier.OnEndpointSlice(six, true)
	b.sync(t)
	for _, at := range []string{"[" + clusterIP6 + "]:80", "[" + nodeAddr6 + "]:30080"} {
		testenv.Equal(t, reaches(t, b.outside, at), podAddrs[1], "%s is answered by", at)
	}
	testenv.Equal(t, reaches(t, b.outside, clusterIP+":80"), podAddrs[0], "IPv4 is answered by")
}

func testThousand(t *testing.T, b *bed) {
	const number = 1000
	for i := range number {
		b.setService(fmt.Sprintf("s%d", i), func(s *corev1.Service) {
			s.Spec.ClusterIP = fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
			s.Spec.Ports[0].NodePort = int32(30000 + i)
		}, 8080, 0, 1)
	}
	start := time.Now()
	b.sync(t)
	t.Logf("%d Services with 2 endpoints and a node port each, written first: %v, %d calls", number, time.Since(start), len(b.calls.changes))
	servers, err := b.calls.Table.Servers()
	testenv.False(t, err != nil || len(servers) != 2*number, "the kernel has %d virtual servers, want %d (%v)", len(servers), 2*number, err)
	reaches(t, b.outside, "10.43.5.200:80")
	b.calls.changes = nil
	start = time.Now()
	b.setService("s500", func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.3.101", []string{"10.43.3.101"}
		s.Spec.Ports[0].NodePort = 30500
	}, 8080, 1)
	b.sync(t)
	t.Logf("one endpoint less among them: %v, %v", time.Since(start), b.calls.changes)
	if len(b.calls.changes) != 2 {
		t.Errorf("one endpoint's end took %d calls, want one for the cluster address and one for the node port", len(b.calls.changes))
	}
	start = time.Now()
	testenv.NoError(t, b.proxier.Sync(t.Context(), true))
	t.Logf("a full sync that finds nothing to do: %v", time.Since(start))
}

func testRemove(t *testing.T, b *bed) {
	b.service(t, "web", nil, 8080, 0)
	record := t.TempDir() + "/record"
	testenv.NoError(t, nft.RecordServiceRules(record, nft.ServicesByIPVS))
	// Of nftables this kernel knows nothing: that part is tried elsewhere.
	if _, err := nft.RemoveServiceRules(record); err != nil && !strings.Contains(err.Error(), "nftables") {
		t.Fatal(err)
	}
	servers, err := b.calls.Table.Servers()
	testenv.False(t, err != nil || len(servers) > 0, "left: %v, %v", servers, err)
	testenv.Fails(t, testenv.Err(netlink.LinkByName(nft.IPVSDevice)), "the device is still there")
	testenv.NoError(t, b.proxier.Sync(context.WithoutCancel(t.Context()), true))
	reaches(t, b.outside, clusterIP+":80")
}
