// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2/ktesting"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/lbports"
	"github.com/coracle-k8s/coracle/proxy/ipvs"
	"github.com/coracle-k8s/coracle/test/netns"
)

// given is a load balancer address with ports of a status: "22 53/UDP", where "22!" has an error.
func given(ip, ports string) corev1.LoadBalancerIngress {
	in := corev1.LoadBalancerIngress{IP: ip}
	for word := range strings.FieldsSeq(ports) {
		word, failed := strings.CutSuffix(word, "!")
		number, protocol, _ := strings.Cut(word, "/")
		p := corev1.PortStatus{Protocol: corev1.Protocol(protocol)}
		if _, err := fmt.Sscan(number, &p.Port); err != nil {
			panic(err)
		}
		if protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if failed {
			p.Error = ptr.To("InUse")
		}
		in.Ports = append(in.Ports, p)
	}
	return in
}

// web is a Service with ports 80 and 22, at these addresses.
func web(at ...corev1.LoadBalancerIngress) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "ssh", Protocol: corev1.ProtocolTCP, Port: 22}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: at}},
	}
}

// webSlice has both ports, at one endpoint for each node.
func webSlice(nodes ...string) *discoveryv1.EndpointSlice {
	s := slice("web", "web-1", "http ssh", nodes...)
	s.Namespace = "default"
	for i, number := range []int32{8080, 2222} {
		s.Ports[i].Port, s.Ports[i].Protocol = ptr.To(number), ptr.To(corev1.ProtocolTCP)
	}
	for i := range s.Endpoints {
		s.Endpoints[i].Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(true)}
	}
	return s
}

// tracked is a back end with upstream's trackers, as both have them, and with what IPVS makes of those.
type tracked struct {
	backend
	services  *upstream.ServiceChangeTracker
	slices    *upstream.EndpointsChangeTracker
	ports     upstream.ServicePortMap
	endpoints upstream.EndpointsMap
	told      func() // after each event
}

func (b *tracked) note(bool) {
	if b.told != nil {
		b.told()
	}
}

func (b *tracked) OnServiceAdd(s *corev1.Service)         { b.note(b.services.Update(nil, s)) }
func (b *tracked) OnServiceUpdate(old, s *corev1.Service) { b.note(b.services.Update(old, s)) }
func (b *tracked) OnServiceDelete(s *corev1.Service)      { b.note(b.services.Update(s, nil)) }
func (b *tracked) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice) {
	b.note(b.slices.EndpointSliceUpdate(s, false))
}
func (b *tracked) OnEndpointSliceUpdate(_, s *discoveryv1.EndpointSlice) { b.OnEndpointSliceAdd(s) }
func (b *tracked) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) {
	b.note(b.slices.EndpointSliceUpdate(s, true))
}

// servers are the virtual servers that IPVS should have now, each a line with its real ones.
func (b *tracked) servers() []string {
	b.ports.Update(b.services)
	b.endpoints.Update(b.slices)
	state := ipvs.Desired(ipvs.View{Services: b.ports, Endpoints: b.endpoints, NodeName: "n1", Scheduler: "rr"})
	var out []string
	for k, v := range state.Servers {
		line := k.String()
		for _, r := range v.Reals {
			line += " " + r.String()
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// tracking is a front before a tracked back end.
func tracking(t *testing.T) (*Proxy, *tracked) {
	b := &tracked{ports: upstream.ServicePortMap{}, endpoints: upstream.EndpointsMap{}, slices: upstream.NewEndpointsChangeTracker(corev1.IPv4Protocol, "n1", nil, nil)}
	b.services = upstream.NewServiceChangeTracker(corev1.IPv4Protocol, func(_ *corev1.ServicePort, _ *corev1.Service, base *upstream.BaseServicePortInfo) upstream.ServicePort {
		return &ipvs.ServicePort{BaseServicePortInfo: base}
	}, nil)
	return frontOf(t, b), b
}

func frontOf(t *testing.T, b backend) *Proxy {
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	o := Options{Reserved: Reserved{Ports: []uint16{6443, 10250, 10053}}}
	o.externals = newExternals(o, log)
	o.externals.host = &hostNetwork{}
	p := &Proxy{o: o, log: log, backend: b, detour: newDetour(b), wake: make(chan struct{}, 1)}
	p.nodeAddresses("a", []netip.Addr{netip.MustParseAddr(nodeAddr)})
	return p
}

// statuses are what a status may say, and which ports of web are served there.
var statuses = []struct {
	name string
	at   []corev1.LoadBalancerIngress
	want []string
}{
	{"none yet", nil, nil},
	{"one port given", []corev1.LoadBalancerIngress{given(nodeAddr, "80")}, []string{"192.0.2.1:80"}},
	{"both given", []corev1.LoadBalancerIngress{given(nodeAddr, "80 22")}, []string{"192.0.2.1:22", "192.0.2.1:80"}},
	{"no ports listed: another load balancer's, or an address of a pool", []corev1.LoadBalancerIngress{given(nodeAddr, "")}, []string{"192.0.2.1:22", "192.0.2.1:80"}},
	{"none of those given is in the spec", []corev1.LoadBalancerIngress{given(nodeAddr, "81 443")}, nil},
	{"another protocol's", []corev1.LoadBalancerIngress{given(nodeAddr, "80/UDP 22")}, []string{"192.0.2.1:22"}},
	{"one with an error", []corev1.LoadBalancerIngress{given(nodeAddr, "80 22!")}, []string{"192.0.2.1:80"}},
	{"an address with ports and one without", []corev1.LoadBalancerIngress{given(nodeAddr, "80"), given(balancerIP, "")}, []string{"192.0.2.1:80", "203.0.113.8:22", "203.0.113.8:80"}},
	{"each port at another address", []corev1.LoadBalancerIngress{given(nodeAddr, "80"), given(balancerIP, "22")}, []string{"192.0.2.1:80", "203.0.113.8:22"}},
	{"another address", []corev1.LoadBalancerIngress{given(balancerIP, "22")}, []string{"203.0.113.8:22"}},
	{"an address that the balancer serves itself", []corev1.LoadBalancerIngress{{IP: balancerIP, IPMode: ptr.To(corev1.LoadBalancerIPModeProxy), Ports: given("", "80").Ports}}, nil},
	{"a name", []corev1.LoadBalancerIngress{{Hostname: "lb.example", Ports: given("", "80").Ports}}, nil},
}

// TestPortsOfTheStatus: at each address of a status the ports are served that it gives there. Going from any status to any other leaves the cluster IP's ports
// alone, and at the end nothing is left.
func TestPortsOfTheStatus(t *testing.T) {
	target := map[string]string{"80": "8080", "22": "2222"}
	for _, first := range statuses {
		t.Run(first.name, func(t *testing.T) {
			p, b := tracking(t)
			p.detour.put(webSlice("n1"))
			var now *corev1.Service
			change := func(what string, at []corev1.LoadBalancerIngress, want []string) {
				t.Helper()
				next := web(at...)
				p.services(now, next)
				now = next
				lines := []string{"tcp 10.43.0.9:22 10.0.0.1:2222", "tcp 10.43.0.9:80 10.0.0.1:8080"}
				for _, addr := range want {
					_, port, _ := strings.Cut(addr, ":")
					lines = append(lines, "tcp "+addr+" 10.0.0.1:"+target[port])
				}
				if got := b.servers(); !slices.Equal(got, lines) {
					t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(lines, "\n"))
				}
			}
			change(first.name, first.at, first.want)
			b.told = func() { // a sync may come after any event
				if got := strings.Join(b.servers(), "\n"); !strings.Contains(got, "10.43.0.9:22 10.0.0.1:2222") || !strings.Contains(got, "10.43.0.9:80 10.0.0.1:8080") {
					t.Errorf("in between there is\n%s", got)
				}
			}
			for _, next := range statuses {
				change(next.name, next.at, next.want)
				change("again "+first.name, first.at, first.want)
				p.detour.forget()
				change("still "+first.name, first.at, first.want)
			}
			b.told = nil
			p.services(now, nil)
			p.detour.forget()
			if got := b.servers(); len(got) > 0 || len(b.ports) > 0 || len(p.detour.parts) > 0 {
				t.Errorf("left: %v, %v, %v", got, b.ports, p.detour.parts)
			}
			if names := slices.Collect(maps.Keys(b.endpoints)); len(names) != 2 {
				t.Errorf("left: endpoints of %v", names)
			}
		})
	}
}

// TestEndpointsOfParts: a part's endpoints follow the Service's slices; a health check node port remains the whole Service's.
func TestEndpointsOfParts(t *testing.T) {
	p, b := tracking(t)
	svc := web(given(nodeAddr, "80"))
	svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30090
	p.services(nil, svc)
	at := func(what string, want ...string) {
		t.Helper()
		if got := b.servers(); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	at("no slice", "tcp 10.43.0.9:22", "tcp 10.43.0.9:80", "tcp 192.0.2.1:80")
	was := webSlice("n1", "n2")
	p.detour.put(was)
	at("a slice", "tcp 10.43.0.9:22 10.0.0.1:2222 10.0.0.2:2222", "tcp 10.43.0.9:80 10.0.0.1:8080 10.0.0.2:8080", "tcp 192.0.2.1:80 10.0.0.1:8080")
	p.detour.set(set("n2"))
	at("a node that is not reached", "tcp 10.43.0.9:22 10.0.0.1:2222", "tcp 10.43.0.9:80 10.0.0.1:8080", "tcp 192.0.2.1:80 10.0.0.1:8080")
	if got := fmt.Sprint(b.ports.HealthCheckNodePorts(), b.endpoints.LocalReadyEndpoints()[types.NamespacedName{Namespace: "default", Name: "web"}]); got != "map[default/web:30090] 1" {
		t.Errorf("health checks: %s", got)
	}
	now := webSlice("n1")
	now.Ports = now.Ports[:1]
	p.detour.update(was, now)
	at("a slice without the part's port", "tcp 10.43.0.9:22", "tcp 10.43.0.9:80 10.0.0.1:8080", "tcp 192.0.2.1:80 10.0.0.1:8080")
	p.detour.update(now, was)
	p.detour.remove(was)
	at("no slice any more", "tcp 10.43.0.9:22", "tcp 10.43.0.9:80", "tcp 192.0.2.1:80")
	if len(b.endpoints) > 0 {
		t.Errorf("left: %v", b.endpoints)
	}
}

// TestPartsOutliveASync: a sync that took in the Services before a part went finds its endpoints yet.
func TestPartsOutliveASync(t *testing.T) {
	p, b := tracking(t)
	p.detour.put(webSlice("n1"))
	apart, whole := web(given(nodeAddr, "80")), web(given(nodeAddr, "80 22"))
	p.services(nil, apart)
	for range 2 {
		p.detour.forget()
		b.ports.Update(b.services) // the sync begins
		p.services(apart, whole)
		b.endpoints.Update(b.slices)
		for name := range b.ports {
			if len(b.endpoints[name]) != 1 {
				t.Errorf("%s has the endpoints %v", name, b.endpoints[name])
			}
		}
		p.services(whole, apart)
	}
	p.services(apart, whole)
	p.detour.forget()
	if b.servers(); len(b.endpoints) != 2 {
		t.Errorf("left: %v", b.endpoints)
	}
}

// TestPortsBeforeTheLeader: who changes the ports of his Service has none of them at nodes' addresses before the leader has looked, not sshd's and not another
// Service's, and keeps there what he has been given.
func TestPortsBeforeTheLeader(t *testing.T) {
	h := &hearing{now: map[string]*corev1.Service{}}
	p := frontOf(t, h)
	balanced := func(ns, name, had string, ports ...int32) *corev1.Service {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
			Status: corev1.ServiceStatus{
				Conditions:   []metav1.Condition{{Type: lbports.Condition, Status: metav1.ConditionTrue}},
				LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{given(nodeAddr, had)}},
			},
		}
		for _, number := range ports {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", number), Port: number, Protocol: corev1.ProtocolTCP})
		}
		return s
	}
	p.services(nil, balanced("web", "web", "443", 443))
	was := balanced("other", "thief", "81", 81)
	p.services(nil, was)
	for _, step := range []struct {
		had   string
		ports []int32
		want  string // ports at the node's address, of all that is of the Service
	}{{"81", []int32{443}, ""}, {"81", []int32{22}, ""}, {"81", []int32{81, 443, 22}, "81"}, {"81", []int32{443, 81}, "81"}, {"81 82", []int32{443, 81, 82}, "81 82"}, {"81 82", []int32{22}, ""}} {
		now := balanced("other", "thief", step.had, step.ports...)
		p.services(was, now)
		was = now
		var got, all []string
		for _, name := range slices.Sorted(maps.Keys(h.now)) {
			for _, port := range h.now[name].Spec.Ports {
				if name == "web" {
					continue
				}
				all = append(all, fmt.Sprint(port.Port))
				if len(ingressOf(h.now[name])) > 0 {
					got = append(got, fmt.Sprint(port.Port))
				}
			}
		}
		if strings.Join(got, " ") != step.want || len(all) != len(step.ports) {
			t.Errorf("with ports %v, and %s given, the back end hears of %v, and of %v at the node's address", step.ports, step.had, all, got)
		}
		if got := ingressOf(h.now["web"]); !slices.Equal(got, []string{nodeAddr}) {
			t.Errorf("the Service that has 443 is served at %v", got)
		}
	}
	if h.mistakes > 0 {
		t.Errorf("%d changes began from what the back end did not have", h.mistakes)
	}
}

// TestPortsOfTheStatusInNFTables: what the nftables back end writes is served at addresses, for each status.
func TestPortsOfTheStatusInNFTables(t *testing.T) {
	netns.RequireNFT(t)
	for _, c := range statuses {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, line := range oursRules(t, []served{{web(c.at...), []*discoveryv1.EndpointSlice{webSlice("n1")}}}) {
				text, ok := strings.CutPrefix(line, "element of ip service-ips ")
				if !ok {
					continue
				}
				var elem []struct{ Concat []any }
				if err := json.Unmarshal([]byte(text), &elem); err != nil || len(elem) == 0 || len(elem[0].Concat) != 3 {
					t.Fatalf("an element of another kind: %s, %v", text, err)
				}
				got = append(got, fmt.Sprint(elem[0].Concat[0], ":", elem[0].Concat[2]))
			}
			want := slices.Concat([]string{clusterIP + ":22", clusterIP + ":80"}, c.want)
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("served at %v, want %v", got, want)
			}
		})
	}
}
