// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// shifting is a Service whose ports and status change at random, and its slices.
type shifting struct {
	r       *rand.Rand
	numbers map[string]int32 // of the spec's ports, by name
	at      []corev1.LoadBalancerIngress
	ports   [2][]string // of each slice; none: there is no such slice
	gone    bool        // there is no Service
}

var shiftingNames = []string{"a", "b", "c", "d", "e"}

// protocolOf is a port's, by its name: those of two protocols have numbers in common.
func protocolOf(name string) corev1.Protocol {
	if name > "c" {
		return corev1.ProtocolUDP
	}
	return corev1.ProtocolTCP
}

// someNumber is a port's number, by its name: one of two.
func (s *shifting) someNumber(name string) int32 {
	return int32(100*(1+s.r.IntN(2)) + slices.Index(shiftingNames, name)%3)
}

func (s *shifting) some(of []string) []string {
	return slices.DeleteFunc(slices.Clone(of), func(string) bool { return s.r.IntN(2) == 0 })
}

// change changes the Service: its status, its ports, or both, as an informer that was behind hears of it.
func (s *shifting) change() {
	if s.r.IntN(3) == 0 {
		name := shiftingNames[s.r.IntN(len(shiftingNames))]
		if s.numbers[name] == 0 || len(s.numbers) == 1 || s.r.IntN(2) == 0 {
			s.numbers[name] = s.someNumber(name)
		} else {
			delete(s.numbers, name)
		}
	}
	if s.r.IntN(3) == 0 {
		return
	}
	s.at = nil
	for _, ip := range []string{nodeAddr, balancerIP, "203.0.113.9"} {
		switch in := (corev1.LoadBalancerIngress{IP: ip}); s.r.IntN(6) {
		case 0: // it is not there
		case 1:
			s.at = append(s.at, in)
		default:
			for _, name := range s.some(shiftingNames) {
				in.Ports = append(in.Ports, corev1.PortStatus{Port: s.numberOf(name), Protocol: protocolOf(name)})
			}
			s.at = append(s.at, in)
		}
	}
}

// numberOf is a port's number, or one that it had or may have.
func (s *shifting) numberOf(name string) int32 {
	if n := s.numbers[name]; n != 0 && s.r.IntN(8) > 0 {
		return n
	}
	return s.someNumber(name)
}

func (s *shifting) service() *corev1.Service {
	svc := web(slices.Clone(s.at)...)
	svc.Spec.Ports = nil
	for _, name := range slices.Sorted(maps.Keys(s.numbers)) {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Protocol: protocolOf(name), Port: s.numbers[name]})
	}
	return svc
}

func (s *shifting) slice(i int) *discoveryv1.EndpointSlice {
	out := webSlice("n1")
	out.Name, out.Ports = fmt.Sprint("web-", i), nil
	out.Endpoints[0].Addresses = []string{fmt.Sprint("10.0.0.", i)}
	for _, name := range s.ports[i] {
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: ptr.To(name), Port: ptr.To(int32(8000 + slices.Index(shiftingNames, name))), Protocol: ptr.To(protocolOf(name))})
	}
	return out
}

// relabelled is a slice that belongs to another Service, which there is not: its label is its owner's to change.
func relabelled(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.Labels = map[string]string{discoveryv1.LabelServiceName: "another"}
	return s
}

// lines are the virtual servers that there should be, as tracked.servers writes them.
func (s *shifting) lines() map[string]bool {
	out := map[string]bool{}
	if s.gone {
		return out
	}
	for name, number := range s.numbers {
		reals := ""
		for i, ports := range s.ports {
			if slices.Contains(ports, name) {
				reals += fmt.Sprintf(" 10.0.0.%d:%d", i, 8000+slices.Index(shiftingNames, name))
			}
		}
		protocol := strings.ToLower(string(protocolOf(name)))
		out[fmt.Sprintf("%s %s:%d%s", protocol, clusterIP, number, reals)] = true
		for _, in := range s.at {
			if len(in.Ports) == 0 || slices.ContainsFunc(in.Ports, func(p corev1.PortStatus) bool { return p.Port == number && p.Protocol == protocolOf(name) }) {
				out[fmt.Sprintf("%s %s:%d%s", protocol, in.IP, number, reals)] = true
			}
		}
	}
	return out
}

// TestRandomParts: whatever a Service's ports, its status and its slices become, after each event there is what should be there before or after the change, and
// what should be there both before and after it is there all the time.
func TestRandomParts(t *testing.T) {
	seed := testenv.Seed(t)
	for round := range uint64(12) {
		s := &shifting{r: rand.New(rand.NewPCG(seed, round)), numbers: map[string]int32{"a": 100, "b": 101, "c": 102}}
		p, b := tracking(t)
		now := s.service()
		p.services(nil, now)
		var known [2]*discoveryv1.EndpointSlice
		for step := range 200 {
			before := s.lines()
			var what string
			var do func()
			switch s.r.IntN(4) {
			case 0:
				i := s.r.IntN(2)
				if s.ports[i] = s.some(shiftingNames); s.r.IntN(5) == 0 {
					s.ports[i] = nil
				}
				was, is := known[i], s.slice(i)
				if what = "a slice"; s.ports[i] == nil && s.r.IntN(2) == 0 {
					is = nil
				} else if s.ports[i] == nil {
					what, is = "a slice that is another Service's", relabelled(is)
				}
				known[i], do = is, func() { (events{p}).slice(was, is) }
			case 1:
				what, do = "between two syncs", p.detour.forget
			default:
				s.change()
				was, is := now, s.service()
				if s.gone = was != nil && s.r.IntN(12) == 0; s.gone {
					is = nil
				}
				what, now, do = "the Service", is, func() { p.services(was, is) }
				if s.r.IntN(4) == 0 { // a sync has begun, and takes in the endpoints only then
					inner := do
					what, do = "the Service, while a sync is under way", func() {
						told := b.told
						b.told = nil
						b.ports.Update(b.services)
						inner()
						b.endpoints.Update(b.slices)
						for name := range b.ports {
							if has := len(b.endpoints[name]) > 0; has != (slices.Contains(s.ports[0], name.Port) || slices.Contains(s.ports[1], name.Port)) {
								t.Errorf("that sync finds endpoints of %s: %v", name, has)
							}
						}
						b.told = told
					}
				}
			}
			after := s.lines()
			b.told = func() {
				got := b.servers()
				for _, line := range got {
					if !before[line] && !after[line] {
						t.Errorf("in between there is %q", line)
					}
				}
				for line := range before {
					if after[line] && !slices.Contains(got, line) {
						t.Errorf("in between there is no %q", line)
					}
				}
			}
			do()
			b.told = nil
			if got, want := b.servers(), slices.Sorted(maps.Keys(after)); !slices.Equal(got, want) {
				t.Errorf("there are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if t.Failed() {
				t.Fatalf("round %d, step %d: %s", round, step, what)
			}
		}
		if now == nil {
			now, s.gone = s.service(), false
			p.services(nil, now)
		}
		p.detour.forget()
		b.servers()
		wanted := 0
		for _, name := range shiftingNames {
			if slices.Contains(s.ports[0], name) || slices.Contains(s.ports[1], name) {
				wanted++
				for _, part := range inParts(now)[1:] {
					if slices.ContainsFunc(part.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == name }) {
						wanted++
					}
				}
			}
		}
		if len(b.endpoints) != wanted {
			t.Errorf("endpoints of %d ports are known, of %d are needed", len(b.endpoints), wanted)
		}
		p.services(now, nil)
		p.detour.forget()
		for i := range known {
			(events{p}).slice(known[i], nil)
		}
		if b.servers(); len(b.ports)+len(b.endpoints)+len(p.detour.parts)+len(p.detour.rejoined) > 0 {
			t.Errorf("left: %v, %v, %v, %v", b.ports, b.endpoints, p.detour.parts, p.detour.rejoined)
		}
	}
}

// slice is the event that a slice came, changed or went.
func (e events) slice(was, is *discoveryv1.EndpointSlice) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		e.OnEndpointSliceAdd(is)
	case is == nil:
		e.OnEndpointSliceDelete(was)
	default:
		e.OnEndpointSliceUpdate(was, is)
	}
}

// counting is a back end that counts what it is told.
type counting struct {
	backend
	events, ports int
}

func (c *counting) service(s *corev1.Service) {
	c.events, c.ports = c.events+1, c.ports+len(s.Spec.Ports)
}
func (c *counting) slice(s *discoveryv1.EndpointSlice) {
	c.events, c.ports = c.events+1, c.ports+len(s.Ports)
}
func (c *counting) OnServiceAdd(s *corev1.Service)                        { c.service(s) }
func (c *counting) OnServiceUpdate(_, s *corev1.Service)                  { c.service(s) }
func (c *counting) OnServiceDelete(s *corev1.Service)                     { c.service(s) }
func (c *counting) OnEndpointSliceAdd(s *discoveryv1.EndpointSlice)       { c.slice(s) }
func (c *counting) OnEndpointSliceUpdate(_, s *discoveryv1.EndpointSlice) { c.slice(s) }
func (c *counting) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice)    { c.slice(s) }

// TestPartsAreFew: what a Service with thousands of ports costs does not depend on how many of them its status gives, but on how many lists of addresses they
// have; and where each port has a list of its own it is in proportion to the ports.
func TestPartsAreFew(t *testing.T) {
	const n = 4000
	many := func(at ...corev1.LoadBalancerIngress) *corev1.Service {
		svc := web(at...)
		svc.Spec.Ports = nil
		for i := range int32(n) {
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Protocol: corev1.ProtocolTCP, Port: 11000 + i})
		}
		return svc
	}
	var eachItsOwn []corev1.LoadBalancerIngress
	for bit := range 12 {
		in := corev1.LoadBalancerIngress{IP: fmt.Sprint("203.0.113.", 10+bit)}
		for i := range int32(n) {
			if i>>bit&1 == 1 {
				in.Ports = append(in.Ports, corev1.PortStatus{Port: 11000 + i, Protocol: corev1.ProtocolTCP})
			}
		}
		eachItsOwn = append(eachItsOwn, in)
	}
	for _, c := range []struct {
		name  string
		at    []corev1.LoadBalancerIngress
		lists int
	}{
		{"all given", []corev1.LoadBalancerIngress{given(nodeAddr, "")}, 1},
		{"one given", []corev1.LoadBalancerIngress{given(nodeAddr, "11000")}, 2},
		{"two given, at two addresses", []corev1.LoadBalancerIngress{given(nodeAddr, "11000"), given(balancerIP, "11001")}, 3},
		{"one address twice", []corev1.LoadBalancerIngress{given(balancerIP, "11000"), given(balancerIP, "11001")}, 2},
		{"each at addresses of its own", eachItsOwn, n},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &counting{}
			p := frontOf(t, b)
			var slice [2]*discoveryv1.EndpointSlice
			for i := range slice {
				slice[i] = webSlice("n1")
				slice[i].Ports, slice[i].Endpoints[0].Addresses = nil, []string{fmt.Sprint("10.0.0.", 1+i)}
				for k := range int32(n) {
					slice[i].Ports = append(slice[i].Ports, discoveryv1.EndpointPort{Name: ptr.To(fmt.Sprint("p", k)), Port: ptr.To(1000 + k), Protocol: ptr.To(corev1.ProtocolTCP)})
				}
			}
			p.detour.put(slice[0])
			for _, step := range []struct {
				what string
				do   func()
			}{
				{"the Service", func() { p.services(nil, many(c.at...)) }},
				{"an endpoint", func() { p.detour.update(slice[0], slice[1]) }},
			} {
				b.events, b.ports = 0, 0
				if step.do(); b.events > 2*c.lists || b.ports > 2*n {
					t.Errorf("%s: %d events with %d ports, where there are %d lists of addresses and %d ports", step.what, b.events, b.ports, c.lists, n)
				}
			}
			for port, all := range p.detour.parts[nameOf(many())] {
				if len(all) != 1 {
					t.Errorf("the port %s is in the parts %v", port, all)
				}
			}
		})
	}
}
