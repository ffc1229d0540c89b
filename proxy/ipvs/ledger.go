// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	upstream "k8s.io/kubernetes/pkg/proxy"
)

// ledger is the desired state of one family. It records which Service port requests which part of the state. So the
// cost of a Service's change depends on its own ports only.
type ledger struct {
	view  View // of the last update, without Services and endpoints
	ports map[upstream.ServicePortName]*portState
	state DesiredState
	// candidates are the Service ports that request a virtual server, sorted by name. The first one gets it.
	candidates map[Key][]*portState
	// Several Service ports may request one address or member: these count the requests beyond the first.
	addresses map[netip.Addr]int
	members   map[member]int
	// touched is what may differ between the kernel and state.
	touched touched
}

// touched has the virtual servers and set members that may have changed since the kernel last had the whole state. A
// nil map means that all may have.
type touched struct {
	servers map[Key]bool
	members map[member]bool
}

func (t touched) addServer(k Key) {
	if t.servers != nil {
		t.servers[k] = true
	}
}

func (t touched) addMember(m member) {
	if t.members != nil {
		t.members[m] = true
	}
}

func newLedger() *ledger {
	return &ledger{
		ports: map[upstream.ServicePortName]*portState{}, state: newDesiredState(), candidates: map[Key][]*portState{},
		addresses: map[netip.Addr]int{}, members: map[member]int{},
	}
}

// update computes the state of a view. Services and endpoints may differ from the last view's only for the Services in
// changed. Anything else may differ, too.
func (l *ledger) update(v View, changed sets.Set[types.NamespacedName]) {
	all := len(l.ports) == 0 || !l.view.equal(v)
	if !all && len(changed) == 0 {
		return
	}
	l.view = v
	l.view.Services, l.view.Endpoints = nil, nil
	for name := range l.ports {
		if _, stays := v.Services[name]; !stays && (all || changed.Has(name.NamespacedName)) {
			l.replace(name, nil)
		}
	}
	for name := range v.Services {
		if all || changed.Has(name.NamespacedName) {
			l.replace(name, v.portState(name))
		}
	}
}

// equal reports whether everything except Services and endpoints is the same.
func (v View) equal(w View) bool {
	return v.NodeName == w.NodeName && v.Scheduler == w.Scheduler && maps.Equal(v.Topology, w.Topology) &&
		slices.Equal(v.NodePortAddrs, w.NodePortAddrs) && maps.Equal(v.Protected, w.Protected)
}

// replace replaces a Service port's last state by the new one. nil means none.
func (l *ledger) replace(name upstream.ServicePortName, p *portState) {
	if old := l.ports[name]; old != nil {
		l.remove(old)
		delete(l.ports, name)
	}
	if p != nil {
		l.add(p)
		l.ports[name] = p
	}
}

func (l *ledger) add(p *portState) {
	for _, o := range p.candidates {
		of := l.candidates[o.key]
		at, _ := slices.BinarySearchFunc(of, p, comparePorts)
		if at == 0 && len(of) > 0 {
			l.withdraw(of[0].candidate(o.key))
		}
		if at == 0 {
			l.serve(o)
		}
		l.candidates[o.key] = slices.Insert(of, at, p)
	}
	l.addMembers(p.members)
}

func (l *ledger) remove(p *portState) {
	for _, o := range p.candidates {
		at, _ := slices.BinarySearchFunc(l.candidates[o.key], p, comparePorts)
		left := slices.Delete(l.candidates[o.key], at, at+1)
		l.candidates[o.key] = left
		if at > 0 {
			continue
		}
		l.withdraw(o)
		if len(left) > 0 {
			l.serve(left[0].candidate(o.key))
		} else {
			delete(l.candidates, o.key)
		}
	}
	l.removeMembers(p.members)
}

// serve adds a candidate to the state.
func (l *ledger) serve(o *candidate) {
	l.state.Servers[o.key] = o.server
	l.touched.addServer(o.key)
	if o.local {
		retain(l.state.Addresses, l.addresses, o.key.Addr, o.key.Addr)
	}
	l.addMembers(o.members)
}

// withdraw removes a candidate from the state.
func (l *ledger) withdraw(o *candidate) {
	delete(l.state.Servers, o.key)
	l.touched.addServer(o.key)
	if o.local {
		release(l.state.Addresses, l.addresses, o.key.Addr, o.key.Addr)
	}
	l.removeMembers(o.members)
}

func (l *ledger) addMembers(all members) {
	for _, m := range all {
		retain(l.state.Sets[m.set], l.members, m.text, m)
		l.touched.addMember(m)
	}
}

func (l *ledger) removeMembers(all members) {
	for _, m := range all {
		release(l.state.Sets[m.set], l.members, m.text, m)
		l.touched.addMember(m)
	}
}

// written records that the kernel has the whole state.
func (l *ledger) written() { l.touched = touched{map[Key]bool{}, map[member]bool{}} }

func comparePorts(a, b *portState) int {
	return cmp.Or(cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name),
		cmp.Compare(a.name.Port, b.name.Port), cmp.Compare(a.name.Protocol, b.name.Protocol))
}

// retain counts one more request. The first one is only in has.
func retain[K, M comparable](has map[K]bool, more map[M]int, k K, m M) {
	if has[k] {
		more[m]++
	}
	has[k] = true
}

// release counts one request less.
func release[K, M comparable](has map[K]bool, more map[M]int, k K, m M) {
	switch more[m] {
	case 0:
		delete(has, k)
	case 1:
		delete(more, m)
	default:
		more[m]--
	}
}
