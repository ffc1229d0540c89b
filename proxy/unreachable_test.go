// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// mirror is a back end that knows the slices as it received them, and notices events that contradict one another.
type mirror struct {
	backend
	t      *testing.T
	slices map[string]*discoveryv1.EndpointSlice
	events int
}

func newMirror(t *testing.T) *mirror {
	return &mirror{t: t, slices: map[string]*discoveryv1.EndpointSlice{}}
}

func (m *mirror) OnEndpointSliceUpdate(old, s *discoveryv1.EndpointSlice) {
	if m.events++; m.slices[s.Name] != old {
		m.t.Errorf("%s was something else than the update says", s.Name)
	}
	m.slices[s.Name] = s
}

func (m *mirror) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) {
	if m.events++; m.slices[s.Name] != s {
		m.t.Errorf("%s was something else than what is deleted", s.Name)
	}
	delete(m.slices, s.Name)
}

// used writes the nodes of the endpoints that upstream's proxiers would send to, for each Service and port.
func (m *mirror) used() map[string]string {
	ready, leaving := map[string][]string{}, map[string][]string{}
	for _, s := range m.slices {
		for _, p := range s.Ports {
			key := s.Labels[discoveryv1.LabelServiceName] + "/" + *p.Name
			for _, e := range s.Endpoints {
				switch c := e.Conditions; {
				case ptr.Deref(c.Ready, true):
					ready[key] = append(ready[key], *e.NodeName)
				case ptr.Deref(c.Serving, true) && ptr.Deref(c.Terminating, false):
					leaving[key] = append(leaving[key], *e.NodeName)
				}
			}
		}
	}
	out := map[string]string{}
	for _, from := range []map[string][]string{leaving, ready} {
		for key, nodes := range from {
			slices.Sort(nodes)
			out[key] = strings.Join(nodes, " ")
		}
	}
	return out
}

// slice is a slice of a Service with ports; each endpoint is a node's name, with ! when not ready and ~ when it is on
// its way out and serves, with ? when it is on its way out and nothing is said of serving.
func slice(service, name, ports string, nodes ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Name, s.Labels = name, map[string]string{discoveryv1.LabelServiceName: service}
	for p := range strings.FieldsSeq(ports) {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p})
	}
	for i, n := range nodes {
		var c discoveryv1.EndpointConditions
		if strings.ContainsAny(n, "!~") {
			c = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(n[0] == '~'), Terminating: ptr.To(n[0] == '~')}
		}
		if n[0] == '?' {
			c = discoveryv1.EndpointConditions{Ready: ptr.To(false), Terminating: ptr.To(true)}
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)}, NodeName: ptr.To(strings.Trim(n, "!~?")), Conditions: c})
	}
	return s
}

func set(names ...string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

func TestUnreachableNodesAreNoBackEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		slices []*discoveryv1.EndpointSlice
		down   string
		want   map[string]string
	}{
		{"one of three", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "n2", "n3")}, "n2", map[string]string{"s/http": "n1 n3"}},
		{"none would remain", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "n2")}, "n1 n2", map[string]string{"s/http": "n1 n2"}},
		{"this node is cut off", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "own", "n1", "n2"), slice("u", "b", "http", "n1", "n2")}, "n1 n2",
			map[string]string{"s/http": "own", "u/http": "n1 n2"}},
		{"of two slices", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1"), slice("s", "b", "http", "n2")}, "n1", map[string]string{"s/http": "n2"}},
		{"what remains is not ready", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "!n2")}, "n1", map[string]string{"s/http": "n1"}},
		{"what remains is on its way out and serves", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "~n2")}, "n1", map[string]string{"s/http": "n2"}},
		{"on its way out where no client comes", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "~n1", "~n2")}, "n1", map[string]string{"s/http": "n2"}},
		{"what remains is on its way out, and nothing is said of serving", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "?n2")}, "n1", map[string]string{"s/http": "n2"}},
		{"one port has others", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "n2"), slice("s", "b", "dns", "n1")}, "n1",
			map[string]string{"s/http": "n2", "s/dns": "n1"}},
		{"two Services", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "n2"), slice("u", "b", "http", "n1")}, "n1",
			map[string]string{"s/http": "n2", "u/http": "n1"}},
		{"all are reached", []*discoveryv1.EndpointSlice{slice("s", "a", "http", "n1", "n2")}, "n3", map[string]string{"s/http": "n1 n2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t)
			d := newReachabilityFilter(m)
			for _, s := range c.slices {
				d.handleSlice(s)
			}
			whole, before := m.used(), reflect.ValueOf(m.slices["a"]).Pointer()
			d.setUnreachable(set(strings.Fields(c.down)...))
			if got := m.used(); !maps.Equal(got, c.want) {
				t.Errorf("used are %v, want %v", got, c.want)
			}
			events := m.events
			testenv.False(t, d.setUnreachable(set(strings.Fields(c.down)...)) || m.events != events, "the same again changes something")
			d.setUnreachable(nil)
			if got := m.used(); !maps.Equal(got, whole) || reflect.ValueOf(m.slices["a"]).Pointer() != before {
				t.Errorf("when all are back %v are used, want %v", got, whole)
			}
		})
	}
}

// Whatever changes in whatever order, the back end knows what one that begins now would receive.
func TestUnreachableEndpointsInAnyOrder(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	m := newMirror(t)
	d := newReachabilityFilter(m)
	known := map[string]*discoveryv1.EndpointSlice{}
	var down map[string]bool
	for range 3000 {
		name := fmt.Sprintf("slice-%d", r.IntN(6))
		switch old := known[name]; r.IntN(4) {
		case 0:
			if old != nil {
				d.remove(old)
				delete(known, name)
			}
		case 1:
			down = map[string]bool{}
			for range r.IntN(4) {
				down[fmt.Sprintf("n%d", r.IntN(4))] = true
			}
			d.setUnreachable(down)
		default:
			var nodes []string
			for range r.IntN(4) {
				nodes = append(nodes, []string{"", "", "!", "~", "?"}[r.IntN(5)]+fmt.Sprintf("n%d", r.IntN(4)))
			}
			s := slice(fmt.Sprintf("s%d", r.IntN(2)), name, []string{"http", "dns", "http dns"}[r.IntN(3)], nodes...)
			if old != nil {
				d.update(old, s)
			} else {
				d.handleSlice(s)
			}
			known[name] = s
		}
		fresh := newMirror(t)
		from := newReachabilityFilter(fresh)
		from.setUnreachable(down)
		for _, s := range known {
			from.handleSlice(s)
		}
		if !reflect.DeepEqual(fresh.slices, m.slices) {
			t.Fatalf("the back end knows\n%v\nwant\n%v", m.used(), fresh.used())
		}
		for key, nodes := range fresh.used() {
			testenv.Require(t, nodes != "", "%s has no endpoint", key)
		}
	}
	for _, s := range known {
		d.remove(s)
	}
	testenv.False(t, len(m.slices)+len(d.groups) > 0, "%d slices and %d groups are left", len(m.slices), len(d.groups))
}

// reachable is an Unreachable that a test sets.
type reachable struct {
	mu      sync.Mutex
	down    map[string]bool
	changed chan struct{}
}

func (r *reachable) Nodes() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down
}

func (r *reachable) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *reachable) set(down map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
	close(r.changed)
	r.changed = make(chan struct{})
}

// A node that is not reached any more is a reason to write the rules; one that no Service is concerned with is none.
func TestUnreachableNodeWakesTheLoop(t *testing.T) {
	down := &reachable{}
	front(t, func(_ *Proxy, e events, r *recorder) {
		e.OnEndpointSliceAdd(slice("s", "a", "http", "n1", "n2"))
		synced(e)
		time.Sleep(time.Second)
		r.take()
		down.set(set("n3"))
		synctest.Wait()
		time.Sleep(time.Second)
		want(t, r, "a node without endpoints", "")
		down.set(set("n2", "n3"))
		time.Sleep(time.Second)
		want(t, r, "a node with one", "slice, sync")
	}, func(o *Options) {
		down.changed = make(chan struct{}) // in the bubble
		o.Unreachable = down
	})
}
