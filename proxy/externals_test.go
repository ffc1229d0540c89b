// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/netinformers"
)

func TestServicesCannotUseReservedAddresses(t *testing.T) {
	newBench := func(t *testing.T) (*Proxy, *hearing) {
		h := &hearing{now: map[string]*corev1.Service{}}
		o := Options{
			NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			Reserved:     Reserved{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.100")}, Ports: []uint16{6443, 10250}},
		}
		log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
		o.externals = newExternals(o, log)
		o.externals.host = &hostNetwork{}
		return &Proxy{o: o, log: log, backend: h, wake: make(chan struct{}, 1)}, h
	}
	svc := func(port, nodePort int32, external, ingress []string) *corev1.Service {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       corev1.ServiceSpec{ExternalIPs: external, Ports: []corev1.ServicePort{{Port: port, NodePort: nodePort}}},
		}
		for _, ip := range ingress {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		return s
	}
	for _, c := range []struct {
		name                      string
		port, nodePort            int32
		external, ingress         []string
		wantExternal, wantIngress []string
		wantNodePort              int32
	}{
		{"nothing of the cluster's", 80, 30080, []string{"203.0.113.7"}, []string{"203.0.113.8"}, []string{"203.0.113.7"}, []string{"203.0.113.8"}, 30080},
		{"external IPs", 80, 0, []string{"192.0.2.1", "192.0.2.2", "192.0.2.100", "10.43.0.1", "10.42.0.7", "127.0.0.1", "203.0.113.7"}, nil, []string{"203.0.113.7"}, nil, 0},
		{"addresses in other words", 80, 0, []string{"192.000.002.001", "010.043.000.001", "203.000.113.007", "no address", "::ffff:10.42.0.7"}, []string{"010.043.000.001", "203.0.113.8"}, []string{"203.000.113.007"}, []string{"203.0.113.8"}, 0},
		{"every machine of the link", 67, 0, []string{"255.255.255.255", "::ffff:255.255.255.255"}, []string{"255.255.255.255"}, nil, nil, 0},
		{"an address that IPv6 wraps", 80, 0, []string{"::ffff:192.0.2.1"}, nil, nil, nil, 0},
		{"a load balancer on nodes", 443, 0, nil, []string{"192.0.2.1", "192.0.2.2", "192.0.2.100"}, nil, []string{"192.0.2.1", "192.0.2.2", "192.0.2.100"}, 0},
		{"a load balancer on nodes' own port", 6443, 0, nil, []string{"192.0.2.1", "192.0.2.2", "192.0.2.100", "203.0.113.8"}, nil, []string{"203.0.113.8"}, 0},
		{"a load balancer in the Services' network", 80, 0, nil, []string{"10.43.0.1"}, nil, nil, 0},
		{"a node port that is nodes' own", 80, 10250, nil, nil, nil, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, h := newBench(t)
			p.nodeAddresses("n2", []netip.Addr{netip.MustParseAddr("192.0.2.2")})
			received := svc(c.port, c.nodePort, c.external, c.ingress)
			p.services(nil, received)
			got := h.now["web"]
			if !slices.Equal(got.Spec.ExternalIPs, c.wantExternal) || !slices.Equal(ingressOf(got), c.wantIngress) || got.Spec.Ports[0].NodePort != c.wantNodePort {
				t.Errorf("passed on: %v, %v, node port %d", got.Spec.ExternalIPs, ingressOf(got), got.Spec.Ports[0].NodePort)
			}
			if !slices.Equal(received.Spec.ExternalIPs, c.external) || !slices.Equal(ingressOf(received), c.ingress) {
				t.Error("the informer's own object was changed")
			}
		})
	}

	t.Run("nodes and networks come and go", func(t *testing.T) {
		p, h := newBench(t)
		s := svc(80, 0, []string{"192.0.2.3", "10.99.0.1"}, nil)
		p.services(nil, s)
		want := func(ips ...string) {
			t.Helper()
			if got := h.now["web"].Spec.ExternalIPs; !slices.Equal(got, ips) {
				t.Errorf("passed on: %v, want %v", got, ips)
			}
		}
		want("192.0.2.3", "10.99.0.1")
		p.nodeAddresses("n3", []netip.Addr{netip.MustParseAddr("192.0.2.3")})
		want("10.99.0.1")
		p.serviceNetworks([]string{"10.43.0.0/16", "10.99.0.0/16"})
		want()
		p.nodeAddresses("n3", nil)
		want("192.0.2.3")
		p.services(s, nil)
		if len(h.now) > 0 || h.mistakes > 0 {
			t.Errorf("left: %v; %d changes began from what the back end did not have", h.now, h.mistakes)
		}
	})
}

// TestAPIVirtualAddressIsNoExternalIP: the API's address is no Service's external IP while it is that.
func TestAPIVirtualAddressIsNoExternalIP(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}}
	p := frontOf(t, h)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "alice", Name: "web"}}
	svc.Spec.ExternalIPs = []string{"203.0.113.9"}
	p.services(nil, svc)
	for _, c := range []struct {
		vips []netip.Addr
		want int
	}{{nil, 1}, {[]netip.Addr{netip.MustParseAddr("203.0.113.9")}, 0}, {nil, 1}} {
		p.Reserve(c.vips)
		if got := h.now["web"].Spec.ExternalIPs; len(got) != c.want || h.mistakes > 0 {
			t.Errorf("with the virtual addresses %v it has %v; %d changes began from what the back end did not have", c.vips, got, h.mistakes)
		}
	}
}

// TestServersAddressIsNoExternalIP: a machine that is a server alone has no Node. Who took its address would have all
// that nodes ask of the API, and no node would hear that the Service is gone.
func TestServersAddressIsNoExternalIP(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}, backend: unresponsive{}}
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	o := Options{Reserved: Reserved{Ports: []uint16{6443}}}
	o.externals = newExternals(o, log)
	o.externals.host = &hostNetwork{}
	p := &Proxy{o: o, log: log, backend: h, reachable: newReachabilityFilter(h), wake: make(chan struct{}, 1)}
	e := events{p}
	servers := func(namespace, service, name string, ips ...string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
		s.AddressType = discoveryv1.AddressTypeIPv4
		for _, ip := range ips {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
		}
		return s
	}
	const first, second, third = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: "api"}}
	svc.Spec.ExternalIPs = []string{first, second, third, "203.0.113.7"}
	svc.Spec.Ports = []corev1.ServicePort{{Port: 6443, Protocol: corev1.ProtocolTCP}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: second}, {IP: "203.0.113.8"}}
	want := func(what string, external, ingress []string) {
		t.Helper()
		if got := h.now["api"]; !slices.Equal(got.Spec.ExternalIPs, external) || !slices.Equal(ingressOf(got), ingress) {
			t.Errorf("%s: it has %v and %v", what, got.Spec.ExternalIPs, ingressOf(got))
		}
	}
	one := servers("default", "kubernetes", "kubernetes", first, second)
	one.Endpoints[1].Conditions.Ready = new(false) // it is away, or about to join
	e.OnEndpointSliceAdd(one)
	p.services(nil, svc)
	want("two servers", []string{third, "203.0.113.7"}, []string{"203.0.113.8"})
	if got := p.o.externals.protected(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr(first), netip.MustParseAddr(second)}) {
		t.Errorf("none has because of a Service: %v", got)
	}
	other := servers("default", "kubernetes", "kubernetes-ipv4-7443", third)
	e.OnEndpointSliceAdd(other)
	e.OnEndpointSliceAdd(servers("mallory", "kubernetes", "kubernetes", "203.0.113.7"))
	want("one with another port", []string{"203.0.113.7"}, []string{"203.0.113.8"})
	moved := servers("default", "kubernetes", "kubernetes", first)
	e.OnEndpointSliceUpdate(one, moved)
	want("the second one has left", []string{second, "203.0.113.7"}, []string{second, "203.0.113.8"})
	unlabelled := servers("default", "another", "kubernetes-ipv4-7443", third)
	e.OnEndpointSliceUpdate(other, unlabelled)
	want("a slice is another Service's", []string{second, third, "203.0.113.7"}, []string{second, "203.0.113.8"})
	e.OnEndpointSliceDelete(moved)
	want("none", svc.Spec.ExternalIPs, []string{second, "203.0.113.8"})
	if left := len(p.o.externals.servers); left > 0 || h.mistakes > 0 {
		t.Errorf("%d slices are left, %d changes began from what the back end did not have", left, h.mistakes)
	}
}

// TestTunnelAddressIsNoExternalIP: where a node says that packets for its pods come in, at an interface of its own
// choice, no Service has an external IP.
func TestTunnelAddressIsNoExternalIP(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}}
	p := frontOf(t, h)
	var err error
	if p.o.Informers, err = netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n0", Services: true}); err != nil {
		t.Fatal(err)
	}
	node := func(name, said string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{clusterconfig.UnderlayAnnotation: said}}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
		return n
	}
	e := events{p}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: "thief"}}
	svc.Spec.ExternalIPs = []string{"10.99.0.7", "fd99::7", "203.0.113.7"}
	svc.Spec.Ports = []corev1.ServicePort{{Port: 8472, Protocol: corev1.ProtocolUDP}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.99.0.7"}} // which no user can write
	p.services(nil, svc)
	for _, step := range []struct {
		what string
		do   func()
		want []string
	}{
		{"no node reported anything", func() {}, svc.Spec.ExternalIPs},
		{"a node is found at its own address", func() { e.onNode(node("n1", "")) }, svc.Spec.ExternalIPs},
		{"a node is found elsewhere", func() { e.onNode(node("n1", "10.99.0.7, fd99::7")) }, []string{"203.0.113.7"}},
		{"it is not by IPv6", func() { e.onNode(node("n1", "::ffff:10.99.0.7,nonsense")) }, []string{"fd99::7", "203.0.113.7"}},
		{"another one is found there, too", func() { e.onNode(node("n2", "10.99.0.7")) }, []string{"fd99::7", "203.0.113.7"}},
		{"the first is gone", func() { e.onNodeGone(node("n1", "")) }, []string{"fd99::7", "203.0.113.7"}},
		{"both are", func() { e.onNodeGone(node("n2", "")) }, svc.Spec.ExternalIPs},
	} {
		step.do()
		if got := h.now["thief"]; !slices.Equal(got.Spec.ExternalIPs, step.want) || len(ingressOf(got)) != 1 {
			t.Errorf("%s: it has %v and %v, want %v", step.what, got.Spec.ExternalIPs, ingressOf(got), step.want)
		}
	}
	if x := p.o.externals; len(x.tunnelAt) > 0 || len(x.nodes) != 1 || h.mistakes > 0 {
		t.Errorf("left: %v, %v; %d changes began from what the back end did not have", x.tunnelAt, x.nodes, h.mistakes)
	}
}

// unresponsive is a back end that receives endpoints and does nothing.
type unresponsive struct{ backend }

func (unresponsive) OnEndpointSliceUpdate(_, _ *discoveryv1.EndpointSlice) {}
func (unresponsive) OnEndpointSliceDelete(*discoveryv1.EndpointSlice)      {}

func ingressOf(s *corev1.Service) (out []string) {
	for _, in := range s.Status.LoadBalancer.Ingress {
		out = append(out, in.IP)
	}
	return out
}

// hearing is a back end that keeps what it received last.
type hearing struct {
	backend
	now      map[string]*corev1.Service
	mistakes int
}

func (h *hearing) OnServiceUpdate(old, s *corev1.Service) {
	name := cmp.Or(old, s).Name
	if h.now[name] != old {
		h.mistakes++
	}
	if h.now[name] = s; s == nil {
		delete(h.now, name)
	}
}
