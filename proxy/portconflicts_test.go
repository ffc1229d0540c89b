// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTunnelIsNoNodePort: where packets from other nodes come in no Service has a node port, whenever that begins and
// ends, and whichever came first.
func TestTunnelIsNoNodePort(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}, backend: unresponsive{}}
	p := frontOf(t, h)
	const vxlan, wireGuard = 8472, 51820
	var err error
	p.o.Informers, err = netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n0", Services: true})
	testenv.NoError(t, err)
	p.ReserveTunnel(vxlan)
	wants := func(name string, protocol corev1.Protocol, port int32) {
		p.services(nil, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 53, Protocol: protocol, NodePort: port}}},
		})
	}
	wants("a", corev1.ProtocolUDP, vxlan)
	wants("b", corev1.ProtocolTCP, vxlan)
	wants("c", corev1.ProtocolUDP, wireGuard)
	for _, step := range []struct{ tunnel, a, c int32 }{{vxlan, 0, wireGuard}, {wireGuard, vxlan, 0}, {0, vxlan, wireGuard}, {vxlan, 0, wireGuard}} {
		p.ReserveTunnel(int(step.tunnel))
		for name, want := range map[string]int32{"a": step.a, "b": vxlan, "c": step.c} {
			testenv.Equal(t, h.now[name].Spec.Ports[0].NodePort, want, "with the tunnel at %d: %s has node port", step.tunnel, name)
		}
	}
	// The cluster changes, and nodes follow one after the other.
	node := func(name, backend string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{clusterconfig.BackendAnnotation: backend}}}
	}
	e := events{p}
	for i, step := range []struct {
		do   func()
		a, c int32
	}{
		{func() { e.onNode(node("n1", "vxlan")); e.onNode(node("n2", "vxlan")); e.onNode(node("n3", "vxlan")) }, 0, wireGuard},
		{func() { p.ReserveTunnel(wireGuard) }, 0, 0},
		{func() { e.onNode(node("n1", "wireguard")) }, 0, 0},
		{func() { e.onNode(node("n2", "wireguard")) }, 0, 0},
		{func() { e.onNode(node("n3", "")) }, vxlan, 0},
		{func() { e.onNode(node("n3", "vxlan")) }, 0, 0},
		{func() { e.onNodeGone(node("n3", "vxlan")) }, vxlan, 0},
		{func() { p.ReserveTunnel(0) }, vxlan, 0},
		{func() { e.onNode(node("n1", "host-gw")); e.onNode(node("n2", "host-gw")) }, vxlan, wireGuard},
		{func() { e.onNode(node("n1", "nonsense")) }, vxlan, wireGuard},
	} {
		step.do()
		for name, want := range map[string]int32{"a": step.a, "b": vxlan, "c": step.c} {
			testenv.Equal(t, h.now[name].Spec.Ports[0].NodePort, want, "after step %d: %s has node port", i, name)
		}
	}
	testenv.True(t, len(p.o.externals.tunnels)+len(p.o.externals.senders) == 0,
		"left: %v, %v", p.o.externals.tunnels, p.o.externals.senders)
}

// TestBalancersPortIsNoNodePort: a port that a load balancer's Service has at nodes' addresses by its status is opened
// as no other Service's node port, in whichever order the Services come, and is as soon as the status is without it. So
// no back end ever has both: in IPVS they would be one virtual server.
func TestBalancersPortIsNoNodePort(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}}
	o := Options{}
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	o.externals = newExternals(o, log)
	o.externals.host = &hostNetwork{}
	p := &Proxy{o: o, log: log, backend: h, wake: make(chan struct{}, 1)}
	balanced := func(change ...func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "alice", Name: "web"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 30080, Protocol: corev1.ProtocolTCP, NodePort: 30080}}},
			Status: corev1.ServiceStatus{
				Conditions:   []metav1.Condition{{Type: loadbalancer.Condition, Status: metav1.ConditionTrue}},
				LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.1", Ports: []corev1.PortStatus{{Port: 30080, Protocol: corev1.ProtocolTCP}}}}},
			},
		}
		for _, c := range change {
			c(s)
		}
		return s
	}
	wants := func(name string, protocol corev1.Protocol) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, Protocol: protocol, NodePort: 30080}}},
		}
	}
	has := func(what, name string, want int32) {
		t.Helper()
		testenv.Equal(t, h.now[name].Spec.Ports[0].NodePort, want, "%s: %s has node port", what, name)
	}
	thief := wants("thief", corev1.ProtocolTCP)
	p.services(nil, thief)
	p.services(nil, wants("other", corev1.ProtocolUDP))
	has("alone", "thief", 30080)
	now := (*corev1.Service)(nil)
	for _, step := range []struct {
		what string
		web  *corev1.Service
		want int32
	}{
		{"it has the port", balanced(), 0},
		{"it is gone", nil, 30080},
		{"it has no address yet", balanced(func(s *corev1.Service) { s.Status = corev1.ServiceStatus{} }), 30080},
		{"it has it now", balanced(), 0},
		{"another load balancer's", balanced(func(s *corev1.Service) { s.Status.Conditions = nil }), 30080},
		{"its address is of a pool", balanced(func(s *corev1.Service) { s.Status.LoadBalancer.Ingress[0].Ports = nil }), 30080},
		{"it is not served now", balanced(func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = nil
			s.Status.Conditions = append(s.Status.Conditions, metav1.Condition{Type: loadbalancer.Kept, Message: "v1; 443/TCP at 192.0.2.7; 30080/TCP,80/TCP at 192.0.2.1,192.0.2.2"})
		}), 0},
		{"it gives the port up, and its status has it", balanced(func(s *corev1.Service) { s.Spec.Ports[0].Port = 80 }), 0},
		{"its status is without it", balanced(func(s *corev1.Service) {
			s.Spec.Ports[0].Port, s.Status.LoadBalancer.Ingress[0].Ports[0].Port = 80, 80
		}), 30080},
		{"it is served again", balanced(), 0},
		{"it is no load balancer any more", balanced(func(s *corev1.Service) {
			s.Spec.Type, s.Status.LoadBalancer = corev1.ServiceTypeNodePort, corev1.LoadBalancerStatus{}
		}), 30080},
	} {
		if now != nil || step.web != nil {
			p.services(now, step.web)
		}
		now = step.web
		has(step.what, "thief", step.want)
		has(step.what, "other", 30080)
		if step.web != nil {
			has(step.what, "web", 30080)
		}
	}
	p.services(now, balanced())
	late := wants("late", "")
	p.services(nil, late)
	has("who comes later", "late", 0)
	testenv.False(t, h.mistakes > 0, "%d changes began from what the back end did not have", h.mistakes)
	for _, s := range []*corev1.Service{thief, late, wants("other", corev1.ProtocolUDP), balanced()} {
		p.services(h.now[s.Name], nil)
	}
	testenv.True(t, len(o.externals.requestedPorts) == 0, "left: %v", o.externals.requestedPorts)
}
