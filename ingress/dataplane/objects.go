// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"maps"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// objects are what routes share: what sections of the table have become, expressions and limiters. Routes point to
// them, so that a changed section rebuilds no route. Proxy.mu guards them.
type objects struct {
	upstream       *upstream
	endpoints      map[string]*endpointSet
	certificates   map[string]*certificate
	authorities    map[string]*authorities
	tls            map[string]*backendTLS // by their table.BackendTLS in JSON
	patterns       map[patternKey]*pattern
	users          map[string]*userSet
	limiters       map[string]*limiter   // by object
	counted        map[string]*hostStats // by the keys of hosts
	uncountedStats hostStats             // of hosts that are not in counted
	sweeps         uint64
}

func newObjects(u *upstream) *objects {
	return &objects{
		upstream: u, endpoints: map[string]*endpointSet{}, certificates: map[string]*certificate{}, authorities: map[string]*authorities{},
		tls: map[string]*backendTLS{}, patterns: map[patternKey]*pattern{}, users: map[string]*userSet{}, limiters: map[string]*limiter{},
		counted: map[string]*hostStats{},
	}
}

// shared says whether an object is needed. Apply owns it.
type shared struct {
	lastSweep uint64 // the sweep that last found it in use
	present   bool   // the table has a section for it
}

func (s *shared) unused(sweep uint64) bool { return !s.present && s.lastSweep != sweep }

// objectOf returns the object of a section, which need not exist yet.
func objectOf[T any](all map[string]*T, key string) *T {
	o := all[key]
	if o == nil {
		o = new(T)
		all[key] = o
	}
	return o
}

type compiler struct{ *objects }

// sweep evicts the objects that no section and no host of a routing names.
func (o *objects) sweep(by *routing) {
	o.sweeps++
	objectOf(o.certificates, table.DefaultCertificateKey).lastSweep = o.sweeps
	for _, s := range by.sites {
		if s.clients != nil {
			s.clients.authorities.lastSweep = o.sweeps
		}
		for _, h := range s.hosts {
			h.markInUse(o.sweeps)
		}
	}
	evict(o.endpoints, o.sweeps)
	evict(o.limiters, o.sweeps)
	evict(o.users, o.sweeps)
	evict(o.patterns, o.sweeps)
	for _, b := range o.tls {
		if b.unused(o.sweeps) {
			b.clients.Load().closeIdle()
		}
	}
	evict(o.tls, o.sweeps)
	evict(o.authorities, o.sweeps)
	evict(o.certificates, o.sweeps)
}

func evict[K comparable, T interface{ unused(sweep uint64) bool }](all map[K]T, sweep uint64) {
	maps.DeleteFunc(all, func(_ K, object T) bool { return object.unused(sweep) })
}

// markInUse records, for a sweep, that the objects which the host holds are in use.
func (h *host) markInUse(sweep uint64) {
	if h.certificate != nil {
		h.certificate.lastSweep = sweep
	}
	if h.stream != nil {
		h.stream.markInUse(sweep)
	}
	for _, r := range h.routes {
		r.markInUse(sweep)
		r.expression.marked(sweep)
		r.conditions.markInUse(sweep)
		if r.policy != nil {
			r.policy.markInUse(sweep)
		}
	}
}
