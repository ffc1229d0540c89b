// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// anyService is one of few, several of which share addresses and ports with others.
func anyService(r *rand.Rand, i int) *corev1.Service {
	ip := fmt.Sprintf("10.43.0.%d", 1+i)
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: []string{"a", "b"}[i%2], Name: fmt.Sprint("s", i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "x", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for range r.IntN(5) {
		[]func(){
			func() { nodePort(s) },
			func() { nodePortLocal(s) },
			func() { balanced("203.0.113.7", fmt.Sprint("203.0.113.", 100+i%3))(s) },
			func() { // some lie in others, also in those of a moment ago
				all := []string{"198.51.100.0/24", "192.0.2.0/28", "198.51.0.0/16", "198.51.100.7/32", "0.0.0.0/0", "192.0.2.8/29"}
				r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				s.Spec.LoadBalancerSourceRanges = all[:1+r.IntN(3)]
			},
			func() {
				s.Spec.ExternalIPs = []string{"198.51.100.7", fmt.Sprint("198.51.100.", 100+i%3), "198.51.100.7"}
			},
			func() { s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal) },
			func() {
				s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](90)}}
			},
			func() {
				s.Annotations = map[string]string{SchedulerAnnotation: []string{"lc", "sh", "nonsense"}[r.IntN(3)]}
			},
			func() {
				s.Spec.Ports = append(s.Spec.Ports[:1:1], corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, corev1.ServicePort{Name: "web", Protocol: corev1.ProtocolTCP, Port: 8080})
			},
			func() { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} },
		}[r.IntN(10)]()
	}
	return s
}

// anyEndpoints are behind a Service; pods are shared by several.
func anyEndpoints(r *rand.Rand, s *corev1.Service) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, name := range []string{"x", "dns", "web"} {
		protocol := map[string]corev1.Protocol{"x": corev1.ProtocolTCP, "dns": corev1.ProtocolUDP, "web": corev1.ProtocolTCP}[name]
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &name, Port: ptr.To[int32](8080), Protocol: &protocol})
	}
	for range r.IntN(4) {
		node := 1 + r.IntN(3)
		ready := r.IntN(4) > 0
		ep := discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.42.%d.%d", node, 2+r.IntN(3))}, NodeName: ptr.To(fmt.Sprint("n", node)),
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: ptr.To(ready || r.IntN(2) == 0), Terminating: ptr.To(!ready && r.IntN(2) == 0)},
		}
		if r.IntN(2) == 0 {
			ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: []string{"a", "b"}[r.IntN(2)]}}}
		}
		out.Endpoints = append(out.Endpoints, ep)
	}
	return out
}

// failing is nftables that refuses now and then.
type failing struct {
	*knftables.Fake
	err error
}

func (f *failing) Run(ctx context.Context, tx *knftables.Transaction) error {
	if f.err != nil {
		return f.err
	}
	return f.Fake.Run(ctx, tx)
}

// TestLedgerIsLikeDesired: after any changes the ledger's state is what Desired computes whole, and what is written of
// it, touched parts alone, leaves the kernel with all of it, though it refuses something now and then.
func TestLedgerIsLikeDesired(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 8 {
		f := &family{name: corev1.IPv4Protocol, services: upstream.ServicePortMap{}, endpoints: upstream.EndpointsMap{}}
		f.changes, f.slices = upstream.NewServiceChangeTracker(f.name, newServicePort, nil), upstream.NewEndpointsChangeTracker(f.name, "n1", nil, nil)
		m, program := newTable(), &failing{Fake: knftables.NewFake(knftables.IPv4Family, nft.IPVSTable)}
		f.apply.table, f.rules.nft, f.rules.view = m, program, ruleView{family: rules4, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
		f.ledger = newLedger()
		v := View{
			Services: f.services, Endpoints: f.endpoints, NodeName: "n1", Scheduler: DefaultScheduler, Topology: map[string]string{corev1.LabelTopologyZone: "a"},
			NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Protected: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true},
		}
		const pool = 8
		var services [pool]*corev1.Service
		var endpoints [pool]*discoveryv1.EndpointSlice
		change := func(i int, gone bool) {
			switch have := services[i]; {
			case have == nil && gone:
			case have == nil || !gone && r.IntN(3) == 0:
				services[i] = anyService(r, i)
				f.changes.Update(have, services[i])
			case gone:
				f.changes.Update(have, nil)
				services[i] = nil
			}
			if s := services[i]; s != nil {
				endpoints[i] = anyEndpoints(r, s)
				f.slices.EndpointSliceUpdate(endpoints[i], false)
			} else if endpoints[i] != nil && r.IntN(3) > 0 { // its endpoints may go later
				f.slices.EndpointSliceUpdate(endpoints[i], true)
				endpoints[i] = nil
			}
		}
		sync := func(full bool) {
			_, changed := f.update()
			if full {
				f.ledger = newLedger()
			}
			f.ledger.update(v, changed)
			want := Desired(v)
			if got := f.ledger.state.String(); got != want.String() {
				t.Fatalf("the ledger has\n%s\nwant\n%s", got, want.String())
			}
			err := errors.Join(f.rules.apply(t.Context(), f.ledger.state.Sets, f.ledger.touched.members, full), f.apply.apply(f.ledger.state.Servers, f.ledger.touched.servers, full))
			if err == nil {
				f.ledger.written()
				wantKernel(t, m, program, want)
			}
		}
		for range 60 {
			for range r.IntN(3) {
				change(r.IntN(pool), r.IntN(4) == 0)
			}
			switch r.IntN(12) {
			case 0:
				v.Topology = map[string]string{corev1.LabelTopologyZone: []string{"a", "b"}[r.IntN(2)]}
			case 1:
				v.NodePortAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")}[:1+r.IntN(2)]
			case 2:
				v.Protected = maps.Clone(v.Protected)
				v.Protected[netip.MustParseAddr([]string{"203.0.113.7", "198.51.100.7"}[r.IntN(2)])] = r.IntN(2) == 0
			}
			for _, reals := range m.reals {
				for _, real := range reals {
					real.Connections = r.IntN(2)
				}
			}
			m.refuse, program.err = nil, nil
			switch r.IntN(8) {
			case 0:
				m.refuse = errRefused
			case 1:
				program.err = errRefused
			}
			sync(r.IntN(10) == 0)
		}
		for i := range pool {
			change(i, true)
		}
		m.refuse, program.err = nil, nil
		sync(false)
		if l := f.ledger; len(l.ports)+len(l.candidates)+len(l.addresses)+len(l.members) > 0 || l.state.String() != "" {
			t.Errorf("of no Services are left %v, %v, %v, %v\n%s", l.ports, l.candidates, l.addresses, l.members, l.state)
		}
	}
}

// wantKernel compares what was written with a state.
func wantKernel(t *testing.T, m *table, program *failing, want DesiredState) {
	t.Helper()
	have := newDesiredState()
	for k, server := range m.servers {
		served := VirtualServer{Server: server}
		for a, real := range m.reals[k] {
			if real.Weight > 0 { // else it drains
				served.Reals = append(served.Reals, a)
			}
		}
		slices.SortFunc(served.Reals, netip.AddrPort.Compare)
		have.Servers[k] = served
	}
	have.Addresses = want.Addresses
	for _, name := range setNames {
		kind := "set"
		if name == setShortcut {
			kind = "map"
		}
		elements := testenv.Must(program.ListElements(t.Context(), kind, name))(t)
		for _, e := range elements {
			for text := range want.Sets[name] { // which knftables takes apart
				if w := element(name, text); slices.Equal(w.Key, e.Key) && slices.Equal(w.Value, e.Value) {
					have.Sets[name][text] = true
				}
			}
		}
		testenv.Require(t, len(elements) == len(want.Sets[name]), "%s has %d elements, want %d", name, len(elements), len(want.Sets[name]))
	}
	testenv.Require(t, have.String() == want.String(), "the kernel has\n%s\nwant\n%s", have, want)
}

// TestPodsAreNoOtherView: addresses that come with pods and those of the other family have no Service looked at again;
// others do.
func TestPodsAreNoOtherView(t *testing.T) {
	p := &Proxier{o: Options{NodeName: "n1", NodePortAddresses: []string{nodeAddr + "/32"}}}
	for _, c := range []struct {
		family corev1.IPFamily
		more   string
		equal  bool
	}{
		{corev1.IPv4Protocol, "fe80::1", true}, {corev1.IPv4Protocol, "2001:db8::1", true}, {corev1.IPv4Protocol, "198.51.100.1", false}, {corev1.IPv4Protocol, "169.254.0.1", false},
		{corev1.IPv6Protocol, "fe80::1", true}, {corev1.IPv6Protocol, "2001:db8::1", false}, {corev1.IPv6Protocol, "198.51.100.1", true},
	} {
		f := &family{name: c.family}
		local := map[netip.Addr]bool{netip.MustParseAddr(nodeAddr): true}
		before := p.view(f, nil, local)
		local[netip.MustParseAddr(c.more)] = true
		if after := p.view(f, nil, local); before.equal(after) != c.equal || after.Protected[netip.MustParseAddr(c.more)] == c.equal {
			t.Errorf("with %s the view of %s is alike: %v\n%v", c.more, c.family, !c.equal, after.Protected)
		}
	}
}

// TestOneAddressOfTwoServices: of two Services with one external IP and port the first by name has it, whichever came
// first, and what the other one wants there is neither in its way nor in nft's: an element of a map has one
// value.
func TestOneAddressOfTwoServices(t *testing.T) {
	netns.RequireNFT(t)
	program := testenv.Must(knftables.New(knftables.IPv4Family, nft.IPVSTable))(t)
	t.Cleanup(func() {
		testenv.Check(t, nft.Delete(nft.Table{Family: nft.IPv4, Name: nft.IPVSTable}))
	})
	for _, order := range [][]string{{"one", "two"}, {"two", "one"}} {
		v := View{Services: upstream.ServicePortMap{}, Endpoints: upstream.EndpointsMap{}, NodeName: "n1", Scheduler: DefaultScheduler}
		services, slices := upstream.NewServiceChangeTracker(corev1.IPv4Protocol, newServicePort, nil), upstream.NewEndpointsChangeTracker(corev1.IPv4Protocol, "n1", nil, nil)
		l := newLedger()
		for _, name := range order {
			at := map[string]int{"one": 1, "two": 2}[name]
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeNodePort, ClusterIP: fmt.Sprint("10.43.0.", at), ClusterIPs: []string{fmt.Sprint("10.43.0.", at)}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
				ExternalIPs: []string{"198.51.100.7"}, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
				Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
			}}
			services.Update(nil, s)
			slice := sliceAt(at, fmt.Sprintf("10.42.%d.2", at)) // the other one's endpoint is elsewhere, so that it wants silence
			slice.Name, slice.Labels[discoveryv1.LabelServiceName], slice.Endpoints[0].NodeName = name, name, ptr.To(fmt.Sprint("n", at))
			slices.EndpointSliceUpdate(slice, false)
			changed := v.Services.Update(services).UpdatedServices.Union(v.Endpoints.Update(slices).UpdatedServices)
			l.update(v, changed)
		}
		for what, s := range map[string]DesiredState{"at once": Desired(v), "one after the other": l.state} {
			server := s.Servers[Key{corev1.ProtocolTCP, netip.MustParseAddr("198.51.100.7"), 80}]
			if len(server.Reals) != 1 || server.Reals[0].String() != "10.42.1.2:8080" || len(s.Sets[setDropped]) > 0 || len(s.Sets[setShortcut]) != 1 || !s.Sets[setShortcut]["198.51.100.7 tcp 80 : 10.43.0.1 80"] {
				t.Errorf("after %v, %s: the state is\n%s", order, what, s)
			}
			w := &rulesWriter{nft: program, view: ruleView{family: rules4, clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}}
			testenv.Check(t, w.apply(t.Context(), s.Sets, nil, true), "after %v, %s", order, what)
		}
	}
}
