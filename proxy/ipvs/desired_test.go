// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// endpoint is where one is, and in what state.
type endpoint struct {
	addr, node, zone, hint  string
	unready, ending, unable bool // unable: not even serving while it ends
}

// viewOf feeds one Service through upstream's trackers.
func viewOf(change func(*corev1.Service), endpoints ...endpoint) View {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.9", ClusterIPs: []string{"10.43.0.9"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "x", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	if change != nil {
		change(svc)
	}
	name, port := "x", int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &svc.Spec.Ports[0].Protocol}},
	}
	for _, e := range endpoints {
		ready, serving := !e.unready && !e.ending, !e.unready && !e.unable
		ep := discoveryv1.Endpoint{
			Addresses: []string{e.addr}, NodeName: &e.node, Zone: &e.zone,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &e.ending},
		}
		if e.hint != "" {
			ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: e.hint}}}
		}
		slice.Endpoints = append(slice.Endpoints, ep)
	}
	v := View{
		Services: upstream.ServicePortMap{}, Endpoints: upstream.EndpointsMap{}, NodeName: "n1", Topology: map[string]string{corev1.LabelTopologyZone: "a"},
		NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Scheduler: DefaultScheduler,
		Protected: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true, netip.MustParseAddr("192.0.2.2"): true},
	}
	services := upstream.NewServiceChangeTracker(corev1.IPv4Protocol, newServicePort, nil)
	services.Update(nil, svc)
	slices := upstream.NewEndpointsChangeTracker(corev1.IPv4Protocol, "n1", nil, nil)
	slices.EndpointSliceUpdate(slice, false)
	v.Services.Update(services)
	v.Endpoints.Update(slices)
	return v
}

func nodePort(s *corev1.Service) {
	s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
}

func nodePortLocal(s *corev1.Service) {
	nodePort(s)
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func balanced(ips ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyCluster
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
	}
}

var (
	here  = endpoint{addr: "10.42.0.2", node: "n1", zone: "a"}
	there = endpoint{addr: "10.42.1.2", node: "n2", zone: "b"}
)

// usual is what every Service with its cluster address has.
const usual = `address 10.43.0.9
cluster-ips 10.43.0.9
service-addresses 10.43.0.9
service-ports 10.43.0.9 tcp 80
`

func TestDesiredFollowsServicesAndEndpoints(t *testing.T) {
	for _, c := range []struct {
		name      string
		change    func(*corev1.Service)
		endpoints []endpoint
		want      string
	}{
		{"cluster address", nil, []endpoint{here, there}, `tcp 10.43.0.9:80 rr
  10.42.0.2:8080
  10.42.1.2:8080
` + usual + `hairpin 10.42.0.2 10.42.0.2 tcp 8080
`},
		{"no endpoints: IPVS refuses", nil, nil, "tcp 10.43.0.9:80 rr\n" + usual},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, []endpoint{here}, ""},
		{"node port", nodePort, []endpoint{there}, `tcp 10.43.0.9:80 rr
  10.42.1.2:8080
tcp 192.0.2.1:30080 rr
  10.42.1.2:8080
` + usual + `masqueraded 192.0.2.1 tcp 30080
`},
		{"external policy Local", nodePortLocal, []endpoint{here, there}, `tcp 10.43.0.9:80 rr
  10.42.0.2:8080
  10.42.1.2:8080
tcp 192.0.2.1:30080 rr
  10.42.0.2:8080
` + usual + `shortcut 192.0.2.1 tcp 30080 : 10.43.0.9 80
hairpin 10.42.0.2 10.42.0.2 tcp 8080
external-local 192.0.2.1 tcp 30080
`},
		{"external policy Local without an endpoint here", nodePortLocal, []endpoint{there}, `tcp 10.43.0.9:80 rr
  10.42.1.2:8080
tcp 192.0.2.1:30080 rr
` + usual + `shortcut 192.0.2.1 tcp 30080 : 10.43.0.9 80
dropped 192.0.2.1 tcp 30080
external-local 192.0.2.1 tcp 30080
`},
		{"internal policy Local without an endpoint here", func(s *corev1.Service) {
			local := corev1.ServiceInternalTrafficPolicyLocal
			s.Spec.InternalTrafficPolicy = &local
		}, []endpoint{there}, `tcp 10.43.0.9:80 rr
address 10.43.0.9
cluster-ips 10.43.0.9
dropped 10.43.0.9 tcp 80
service-addresses 10.43.0.9
service-ports 10.43.0.9 tcp 80
`},
		{"external IP", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.7"} }, []endpoint{there}, `tcp 10.43.0.9:80 rr
  10.42.1.2:8080
tcp 203.0.113.7:80 rr
  10.42.1.2:8080
address 10.43.0.9
address 203.0.113.7
cluster-ips 10.43.0.9
masqueraded 203.0.113.7 tcp 80
service-addresses 10.43.0.9
service-addresses 203.0.113.7
service-ports 10.43.0.9 tcp 80
service-ports 203.0.113.7 tcp 80
`},
		{"load balancer addresses that are nodes'", balanced("192.0.2.1", "192.0.2.2"), []endpoint{there}, `tcp 10.43.0.9:80 rr
  10.42.1.2:8080
tcp 192.0.2.1:80 rr
  10.42.1.2:8080
tcp 192.0.2.2:80 rr
  10.42.1.2:8080
` + strings.Replace(usual, "service-addresses", "masqueraded 192.0.2.1 tcp 80\nmasqueraded 192.0.2.2 tcp 80\nservice-addresses", 1)},
		{"source ranges", func(s *corev1.Service) {
			balanced("203.0.113.7")(s)
			s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", " 192.0.2.128/25 "}
		}, []endpoint{there}, `tcp 10.43.0.9:80 rr
  10.42.1.2:8080
tcp 203.0.113.7:80 rr
  10.42.1.2:8080
address 10.43.0.9
address 203.0.113.7
cluster-ips 10.43.0.9
masqueraded 203.0.113.7 tcp 80
guarded 203.0.113.7 tcp 80
allowed 203.0.113.7 tcp 80 192.0.2.0/24
allowed 203.0.113.7 tcp 80 203.0.113.7/32
service-addresses 10.43.0.9
service-addresses 203.0.113.7
service-ports 10.43.0.9 tcp 80
service-ports 203.0.113.7 tcp 80
`},
		{"affinity and a scheduler", func(s *corev1.Service) {
			seconds := int32(60)
			s.Annotations = map[string]string{SchedulerAnnotation: "sh"}
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}, []endpoint{there}, "tcp 10.43.0.9:80 sh affinity 60s\n  10.42.1.2:8080\n" + usual},
		{"hints", nil, []endpoint{{addr: "10.42.1.2", node: "n2", hint: "b"}, {addr: "10.42.2.2", node: "n3", hint: "a"}},
			"tcp 10.43.0.9:80 rr\n  10.42.2.2:8080\n" + usual},
		{"one ends, one is ready", nil, []endpoint{there, {addr: "10.42.2.2", node: "n3", ending: true}}, "tcp 10.43.0.9:80 rr\n  10.42.1.2:8080\n" + usual},
		{"all end, one serves", nil, []endpoint{{addr: "10.42.1.2", node: "n2", ending: true}, {addr: "10.42.2.2", node: "n3", ending: true, unable: true}},
			"tcp 10.43.0.9:80 rr\n  10.42.1.2:8080\n" + usual},
		{"none is ready", nil, []endpoint{{addr: "10.42.1.2", node: "n2", unready: true}}, "tcp 10.43.0.9:80 rr\n" + usual},
		{"datagrams", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }, []endpoint{there},
			strings.ReplaceAll("tcp 10.43.0.9:80 rr\n  10.42.1.2:8080\n"+usual, "tcp", "udp")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Desired(viewOf(c.change, c.endpoints...)).String(); sorted(got) != sorted(c.want) {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// table is an IPVS in memory that can refuse.
type table struct {
	servers map[Key]Server
	reals   map[Key]map[netip.AddrPort]*Real
	refuse  error
	reads   int
	lacks   string // a scheduler
	lacked  int    // how often it was asked for
}

func newTable() *table {
	return &table{servers: map[Key]Server{}, reals: map[Key]map[netip.AddrPort]*Real{}}
}

func (m *table) Servers() (map[Key]Server, error) {
	m.reads++
	return maps.Clone(m.servers), nil
}

func (m *table) Reals(k Key) (out []Real, _ error) {
	m.reads++
	for _, r := range m.reals[k] {
		out = append(out, *r)
	}
	return out, nil
}

func (m *table) AddServer(k Key, s Server) error {
	if m.refuse != nil {
		return m.refuse
	}
	if s.Scheduler == m.lacks {
		m.lacked++
		return schedulerError(unix.ENOENT, s)
	}
	m.servers[k], m.reals[k] = s, map[netip.AddrPort]*Real{}
	return nil
}

func (m *table) UpdateServer(k Key, s Server) error {
	if s.Scheduler == m.lacks {
		m.lacked++
		return schedulerError(unix.ENOENT, s)
	}
	m.servers[k] = s
	return m.refuse
}
func (m *table) DeleteServer(k Key) error { delete(m.servers, k); delete(m.reals, k); return m.refuse }
func (m *table) AddReal(k Key, a netip.AddrPort) error {
	m.reals[k][a] = &Real{Addr: a, Weight: 1}
	return m.refuse
}
func (m *table) SetWeight(k Key, a netip.AddrPort, w int) error {
	m.reals[k][a].Weight = w
	return m.refuse
}
func (m *table) DeleteReal(k Key, a netip.AddrPort) error { delete(m.reals[k], a); return m.refuse }

// TestRemovedServersDoNotDrain: a virtual server that drained when another program removed it, and that no Service
// wants by then, is not waited for.
func TestRemovedServersDoNotDrain(t *testing.T) {
	k := Key{corev1.ProtocolTCP, netip.MustParseAddr("10.43.0.9"), 80}
	one, two := netip.MustParseAddrPort("10.42.0.2:80"), netip.MustParseAddrPort("10.42.0.6:80")
	m := newTable()
	a := &applier{table: m}
	apply := func(full bool, want map[Key]VirtualServer) {
		t.Helper()
		testenv.NoError(t, a.apply(want, nil, full))
	}
	apply(false, map[Key]VirtualServer{k: {Server{Scheduler: "rr"}, []netip.AddrPort{one, two}}})
	m.reals[k][two].Connections = 1
	apply(false, map[Key]VirtualServer{k: {Server{Scheduler: "rr"}, []netip.AddrPort{one}}})
	apply(true, map[Key]VirtualServer{k: {Server{Scheduler: "rr"}, []netip.AddrPort{one}}})
	testenv.Require(t, len(a.draining) == 1, "%d drain, want one", len(a.draining))
	clear(m.servers)
	clear(m.reals)
	apply(true, nil)
	testenv.False(t, len(a.draining) > 0, "these drain, and are nowhere: %v", a.draining)
}

func TestApplyDrainsRemovedRealServers(t *testing.T) {
	m := newTable()
	a := &applier{table: m}
	k := Key{corev1.ProtocolTCP, netip.MustParseAddr("10.43.0.9"), 80}
	one, two := netip.MustParseAddrPort("10.42.0.2:80"), netip.MustParseAddrPort("10.42.0.6:80")
	apply := func(full bool, reals ...netip.AddrPort) {
		t.Helper()
		testenv.NoError(t, a.apply(map[Key]VirtualServer{k: {Server{Scheduler: "rr"}, reals}}, nil, full))
	}
	apply(false, one, two)
	reads := m.reads
	apply(false, one, two)
	testenv.False(t, m.reads != reads, "nothing changed, and the kernel was asked %d times", m.reads-reads)
	m.reals[k][one].Connections = 3
	apply(false, two)
	if r := m.reals[k][one]; r == nil || r.Weight != 0 || !a.draining[k] {
		t.Fatalf("with connections: %+v", r)
	}
	apply(false, two)
	m.reals[k][one].Connections = 0
	apply(false, two)
	if r := m.reals[k][one]; r != nil || len(a.draining) > 0 {
		t.Errorf("without connections: %+v, draining %v", r, a.draining)
	}
	m.refuse = errors.New("no")
	testenv.Fails(t, a.apply(map[Key]VirtualServer{}, nil, false), "a refusal is not reported")
	m.refuse = nil
	m.servers[k] = Server{Scheduler: "lc"} // what the refused call left is not known: the next looks
	m.reals[k] = map[netip.AddrPort]*Real{}
	apply(false, one)
	testenv.False(t, m.servers[k].Scheduler != "rr" || len(m.reals[k]) != 1, "after a refusal: %v %v", m.servers[k], m.reals[k])
}

// TestKernelLacksAScheduler: one Service's wish is neither in the way of others, nor asked for again and again.
func TestKernelLacksAScheduler(t *testing.T) {
	m := newTable()
	m.lacks = "mh"
	a := &applier{table: m}
	key := func(port uint16) Key { return Key{corev1.ProtocolTCP, netip.MustParseAddr("10.43.0.9"), port} }
	one, two := netip.MustParseAddrPort("10.42.0.2:80"), netip.MustParseAddrPort("10.42.0.6:80")
	apply := func(full bool, reals ...netip.AddrPort) {
		t.Helper()
		want := map[Key]VirtualServer{key(1): {Server{Scheduler: "mh"}, reals}, key(2): {Server{Scheduler: "lc"}, reals}, key(3): {Server{Scheduler: "mh"}, reals}}
		testenv.NoError(t, a.apply(want, nil, full))
	}
	has := func(when string, reals int, first, second string) {
		t.Helper()
		for k, scheduler := range map[Key]string{key(1): first, key(2): second, key(3): first} {
			if got := m.servers[k].Scheduler; got != scheduler || len(m.reals[k]) != reals {
				t.Errorf("%s %s has the scheduler %q and %d real servers; want %q and %d", when, k, got, len(m.reals[k]), scheduler, reals)
			}
		}
	}
	apply(true, one)
	has("at first", 1, "rr", "lc")
	testenv.True(t, m.lacked == 1, "the kernel was asked %d times for a scheduler that it lacks", m.lacked)
	reads := m.reads
	apply(false, one)
	testenv.False(t, m.reads != reads || m.lacked != 1, "nothing changed, and the kernel was asked %d times", m.reads-reads+m.lacked-1)
	apply(false, one, two)
	has("after a change", 2, "rr", "lc")
	m.lacks = ""
	apply(true, one, two)
	has("with the module", 2, "mh", "lc")
	m.lacks = "lc" // the kernel cannot lose one that is in use; but another one may be asked for
	m.servers[key(2)] = Server{Scheduler: "sh"}
	apply(true, one, two)
	has("asked for a change", 2, "mh", "rr")

	m.lacks, m.servers, m.reals = DefaultScheduler, map[Key]Server{}, map[Key]map[netip.AddrPort]*Real{}
	err := (&applier{table: m}).apply(map[Key]VirtualServer{key(1): {Server{Scheduler: "rr"}, nil}, key(2): {Server{Scheduler: "lc"}, nil}}, nil, true)
	testenv.False(t, !errors.Is(err, errNoScheduler) || len(m.servers) != 1, "without rr there are %v, and the error is %v", m.servers, err)
}

// TestSubstitutesAreLoggedOnce looks at the log.
func TestSubstitutesAreLoggedOnce(t *testing.T) {
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	with := func(scheduler string) upstream.ServicePortMap {
		return viewOf(func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: scheduler} }).Services
	}
	var s substitutes
	four, six := &family{}, &family{}
	for i, c := range []struct {
		asks    string
		node    string
		lacking []string
		want    string // in a new line; empty: there is none
	}{
		{"mh", "rr", nil, ""},
		{"mh", "rr", []string{"mh"}, "ip_vs_mh"},
		{"mh", "rr", []string{"mh"}, ""},
		{"sh", "rr", []string{"mh", "sh"}, "ip_vs_sh"},
		{"lc", "rr", []string{"mh", "sh"}, ""},
		{"nonsense", "rr", nil, "does not exist"},
		{"nonsense", "rr", nil, ""},
		{"", "wlc", []string{"wlc"}, "--ipvs-scheduler"},
		{"", "wlc", []string{"wlc"}, ""},
	} {
		four.services, four.apply.lacking = with(c.asks), map[string]bool{}
		six.services, six.apply.lacking = four.services, map[string]bool{}
		for _, l := range c.lacking {
			four.apply.lacking[l] = true
			six.apply.lacking[l] = true
		}
		before := len(logged(t, logger))
		s.report(logger, c.node, []*family{four, six})
		switch got := logged(t, logger)[before:]; {
		case c.want == "" && got != "":
			t.Errorf("step %d: said again %q", i, got)
		case c.want != "" && (strings.Count(got, "\n") != 1 || !strings.Contains(got, c.want)):
			t.Errorf("step %d: said %q, want one line with %q", i, got, c.want)
		}
	}
}

func logged(t *testing.T, l klog.Logger) string {
	t.Helper()
	sink, ok := l.GetSink().(ktesting.Underlier)
	testenv.Require(t, ok, "the logger keeps nothing")
	return sink.GetBuffer().String()
}

// TestOnlyRuleDifferencesAreSent looks at what is sent to nft.
func TestOnlyRuleDifferencesAreSent(t *testing.T) {
	program := &counting{Fake: knftables.NewFake(knftables.IPv4Family, nft.IPVSTable)}
	w := &rulesWriter{nft: program, view: ruleView{
		family: rules4, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, serviceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}}
	for i, c := range []struct {
		view View
		full bool
		runs int
	}{{viewOf(nil, here), true, 1}, {viewOf(nil, here), false, 1}, {viewOf(nodePort, here), false, 2}, {viewOf(nodePort), false, 3}, {viewOf(nodePort), true, 4}} {
		want := Desired(c.view).Sets
		testenv.NoError(t, w.apply(t.Context(), want, nil, c.full))
		testenv.True(t, program.runs == c.runs, "step %d: nft ran %d times, want %d", i, program.runs, c.runs)
		for name, elements := range want {
			if name == setShortcut {
				continue
			}
			got, err := program.ListElements(t.Context(), "set", name)
			testenv.True(t, err == nil && len(got) == len(elements),
				"step %d: %s has %d elements (%v), want %d", i, name, len(got), err, len(elements))
		}
	}
}

// counting counts transactions.
type counting struct {
	*knftables.Fake
	runs int
}

func (c *counting) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.runs++
	return c.Fake.Run(ctx, tx)
}

// TestServicesWithoutSchedulerUseNodesDefault: Services that name none, or one that does not exist, have the node's.
func TestServicesWithoutSchedulerUseNodesDefault(t *testing.T) {
	for asks, want := range map[string]string{"": "wlc", "nonsense": "wlc", "sh": "sh"} {
		v := viewOf(func(s *corev1.Service) { s.Annotations = map[string]string{SchedulerAnnotation: asks} }, here)
		v.Scheduler = "wlc"
		for k, server := range Desired(v).Servers {
			testenv.Equal(t, server.Scheduler, want, "asked for %q, %s has", asks, k)
		}
	}
	testenv.WantError(t, testenv.Err(New(Options{Scheduler: "nonsense"})), "nonsense")
}

func TestOldKernelsAreRefusedForIPVS(t *testing.T) {
	for release, fits := range map[string]bool{"6.1.176": true, "5.9.0": true, "5.10.0-30-amd64": true, "5.8.18": false, "4.19.0": false, "x": false} {
		testenv.Equal(t, (newEnough(release) == nil), fits, "%s:", release)
	}
}
