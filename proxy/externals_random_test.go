// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// rivals are Services of three namespaces that request the same few addresses and ports, and machines that have some of
// them.
type rivals struct {
	r        *rand.Rand
	services map[string]*corev1.Service
	nodes    map[string][]netip.Addr
	servers  map[string]*discoveryv1.EndpointSlice
}

var rivalAddresses = []string{"192.0.2.1", "192.0.2.2", "192.000.002.003", "2001:db8::1", "203.0.113.8"}

func (c *rivals) some(n int) (out []string) {
	for _, a := range rivalAddresses {
		if c.r.IntN(n) == 0 {
			out = append(out, a)
		}
	}
	return out
}

func (c *rivals) service(name string) *corev1.Service {
	namespace, _, _ := strings.Cut(name, "-")
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(int64(c.r.IntN(3)), 0)}}
	s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeLoadBalancer, c.some(4)
	switch c.r.IntN(8) {
	case 0:
		s.Spec.Type = corev1.ServiceTypeExternalName
	case 1:
		s.Spec.Type, s.Spec.ClusterIP = corev1.ServiceTypeClusterIP, corev1.ClusterIPNone
	}
	for i, p := range []loadbalancer.Port{{Protocol: corev1.ProtocolTCP, Number: 80}, {Protocol: corev1.ProtocolTCP, Number: 443}, {Protocol: corev1.ProtocolUDP, Number: 443}, {Protocol: corev1.ProtocolTCP, Number: 6443}} {
		if c.r.IntN(2) == 0 {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Protocol: p.Protocol, Port: p.Number, NodePort: []int32{0, 80, 443}[c.r.IntN(3)]})
		}
	}
	for _, a := range c.some(5) {
		in := corev1.LoadBalancerIngress{IP: a}
		for _, number := range []int32{80, 443} {
			if c.r.IntN(3) == 0 {
				in.Ports = append(in.Ports, corev1.PortStatus{Port: number, Protocol: corev1.ProtocolTCP})
			}
		}
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, in)
	}
	if c.r.IntN(2) == 0 {
		s.Status.Conditions = []metav1.Condition{{Type: loadbalancer.Condition}}
	}
	return s
}

func (c *rivals) slice(name string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}}}
	s.Endpoints = []discoveryv1.Endpoint{{Addresses: c.some(6)}}
	return s
}

// step changes one thing, and tells a front of it.
func (c *rivals) step(p *Proxy) {
	switch c.r.IntN(8) {
	case 0:
		name := fmt.Sprint("n", c.r.IntN(2))
		var addrs []netip.Addr
		for _, a := range c.some(6) {
			ip, _ := parseIP(a)
			addrs = append(addrs, ip)
		}
		c.nodes[name] = addrs
		p.nodeAddresses(name, addrs)
	case 1:
		name := fmt.Sprint("kubernetes-", c.r.IntN(2))
		was, is := c.servers[name], c.slice(name)
		if c.r.IntN(3) == 0 {
			is = nil
		}
		if c.servers[name] = is; is == nil {
			delete(c.servers, name)
		}
		(events{p}).slice(was, is)
	default:
		name := []string{"a-1", "a-2", "b-1", "b-2", "c-1"}[c.r.IntN(5)]
		was := c.services[name]
		is := c.next(name, was)
		if was == nil && is == nil {
			return
		}
		if c.services[name] = is; is == nil {
			delete(c.services, name)
		}
		p.services(was, is)
	}
}

// next is what becomes of a Service: it is deleted, is created again before its deletion was seen, or changes in part
// or altogether.
func (c *rivals) next(name string, was *corev1.Service) *corev1.Service {
	is := c.service(name)
	switch c.r.IntN(10) {
	case 0, 1:
		return nil
	case 2:
		return is
	}
	if was != nil {
		is.CreationTimestamp = was.CreationTimestamp
		if c.r.IntN(2) == 0 {
			is.Spec.Ports = was.Spec.Ports
		}
		if c.r.IntN(2) == 0 {
			is.Spec.ExternalIPs = was.Spec.ExternalIPs
		}
		if c.r.IntN(2) == 0 {
			is.Status = was.Status
		}
	}
	return is
}

// started tells a new front of everything, in any order, as after a restart.
func (c *rivals) started(p *Proxy) {
	var tell []func()
	for name, addrs := range c.nodes {
		tell = append(tell, func() { p.nodeAddresses(name, addrs) })
	}
	for _, s := range c.servers {
		tell = append(tell, func() { (events{p}).slice(nil, s) })
	}
	for _, s := range c.services {
		tell = append(tell, func() { p.services(nil, s) })
	}
	c.r.Shuffle(len(tell), func(i, j int) { tell[i], tell[j] = tell[j], tell[i] })
	for _, f := range tell {
		f()
	}
}

// machine says whether an address is one of a node or a server.
func (c *rivals) machine(a netip.Addr) bool {
	for _, addrs := range c.nodes {
		if slices.Contains(addrs, a) {
			return true
		}
	}
	for _, s := range c.servers {
		for _, text := range s.Endpoints[0].Addresses {
			if ip, _ := parseIP(text); ip == a {
				return true
			}
		}
	}
	return false
}

// TestExternalIPsAreIndependentOfOrder: whatever Services ask for and in whichever order, what the back end hears is
// what a front hears that has just started; no Service has a machine's address, and each has all other external IPs.
func TestExternalIPsAreIndependentOfOrder(t *testing.T) {
	seed := testenv.Seed(t)
	front := func() (*Proxy, *hearing) {
		h := &hearing{now: map[string]*corev1.Service{}, backend: unresponsive{}}
		p := frontOf(t, h)
		p.nodeAddresses("a", nil)
		return p, h
	}
	heard := func(h *hearing) string {
		var lines []string
		for _, name := range slices.Sorted(maps.Keys(h.now)) {
			s := h.now[name]
			lines = append(lines, fmt.Sprint(name, s.Spec.ExternalIPs, s.Spec.Ports, s.Status.LoadBalancer.Ingress))
		}
		return strings.Join(lines, "\n")
	}
	for round := range uint64(10) {
		c := &rivals{r: rand.New(rand.NewPCG(seed, round)), services: map[string]*corev1.Service{}, nodes: map[string][]netip.Addr{}, servers: map[string]*discoveryv1.EndpointSlice{}}
		p, h := front()
		for step := range 150 {
			c.step(p)
			again, fresh := front()
			c.started(again)
			if got, want := heard(h), heard(fresh); got != want || h.mistakes > 0 {
				t.Fatalf("round %d, step %d, %d mistakes: the back end has\n%s\nand after a start\n%s", round, step, h.mistakes, got, want)
			}
			for _, s := range h.now {
				var own []string
				name, _, _ := strings.Cut(s.Name, "/") // of which it may be a part
				received := c.services[name]
				for _, text := range received.Spec.ExternalIPs {
					if a, _ := parseIP(text); !c.machine(a) {
						own = append(own, text)
					}
				}
				if !slices.Equal(s.Spec.ExternalIPs, own) {
					t.Errorf("%s/%s has the external IPs %v, and should have %v", s.Namespace, s.Name, s.Spec.ExternalIPs, own)
				}
			}
			if t.Failed() {
				t.Fatalf("round %d, step %d:\n%s", round, step, heard(h))
			}
		}
		for _, s := range c.services {
			p.services(s, nil)
		}
		if x := p.o.externals; len(x.requestedPorts)+len(x.filtered)+len(h.now) > 0 {
			t.Fatalf("round %d: without Services there are %d requestedPorts and %d Services left", round, len(x.requestedPorts), len(x.filtered))
		}
	}
}
