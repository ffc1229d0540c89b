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

// ledger is the desired state of one family, and who wants what of it: a Service that changes costs its own ports,
// however many others there are.
type ledger struct {
	view  View // of the last update, without Services and endpoints
	ports map[upstream.ServicePortName]*portState
	state DesiredState
	// candidates are by name those who want a virtual server, of whom the first has it.
	candidates map[Key][]*portState
	// Addresses and members may be several Service ports': how many want one beyond the first.
	addresses map[netip.Addr]int
	members   map[member]int
	// touched is what may not be in the kernel as it is here.
	touched touched
}

// touched are parts of a State; a map that is nil stands for all of them.
type touched struct {
	servers map[Key]bool
	members map[member]bool
}

func (t touched) server(k Key) {
	if t.servers != nil {
		t.servers[k] = true
	}
}

func (t touched) member(m member) {
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

// update makes the state that of a view, in which Services and endpoints differ from the last one's only where a
// Service is named; anything else may differ, too.
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

// equal says whether all but Services and endpoints is the same.
func (v View) equal(w View) bool {
	return v.NodeName == w.NodeName && v.Scheduler == w.Scheduler && maps.Equal(v.Topology, w.Topology) &&
		slices.Equal(v.NodePortAddrs, w.NodePortAddrs) && maps.Equal(v.NeverLocal, w.NeverLocal)
}

// replace puts in a Service port's new state in the place of its last one; nil is none.
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
	l.want(p.members)
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
	l.leave(p.members)
}

// serve puts a candidate into the state.
func (l *ledger) serve(o *candidate) {
	l.state.Servers[o.key] = o.server
	l.touched.server(o.key)
	if o.local {
		retain(l.state.Addresses, l.addresses, o.key.Addr, o.key.Addr)
	}
	l.want(o.members)
}

// withdraw takes it out.
func (l *ledger) withdraw(o *candidate) {
	delete(l.state.Servers, o.key)
	l.touched.server(o.key)
	if o.local {
		release(l.state.Addresses, l.addresses, o.key.Addr, o.key.Addr)
	}
	l.leave(o.members)
}

func (l *ledger) want(all members) {
	for _, m := range all {
		retain(l.state.Sets[m.set], l.members, m.text, m)
		l.touched.member(m)
	}
}

func (l *ledger) leave(all members) {
	for _, m := range all {
		release(l.state.Sets[m.set], l.members, m.text, m)
		l.touched.member(m)
	}
}

// written says that the kernel has all of the state.
func (l *ledger) written() { l.touched = touched{map[Key]bool{}, map[member]bool{}} }

func comparePorts(a, b *portState) int {
	return cmp.Or(cmp.Compare(a.name.Namespace, b.name.Namespace), cmp.Compare(a.name.Name, b.name.Name),
		cmp.Compare(a.name.Port, b.name.Port), cmp.Compare(a.name.Protocol, b.name.Protocol))
}

// retain notes one more who wants something. What is wanted once is in has alone.
func retain[K, M comparable](has map[K]bool, more map[M]int, k K, m M) {
	if has[k] {
		more[m]++
	}
	has[k] = true
}

// release notes one less.
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
