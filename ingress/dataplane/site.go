// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// siteRoutes are the hosts of a site with a compiled table.Site. They do not change once requests are routed by them.
type siteRoutes struct {
	hosts         map[string]*host
	streams       int // hosts whose connections are streams
	wildcards     int // hosts with a wildcard
	deepWildcards int // hosts with a wildcard for one label or more
	// listeners are the host names of the listeners. It is nil where the site does not separate its listeners.
	listeners map[string]struct{}
	clients   *clients // nil where clients are not asked for a certificate
	closed    string   // why nothing is served; empty for a site that is open
	present   bool     // the table has a section for it
}

// clients says which certificates of clients are accepted.
type clients struct {
	authorities *authorities
	optional    bool
}

// find returns the host that serves a name. The name itself has precedence over a wildcard for its first label, that
// over a wildcard for more labels, and that over "". find returns nil when there is none.
func (s *siteRoutes) find(name string) *host {
	if h := s.hosts[name]; h != nil {
		return h
	}
	for rest, first := name, true; s.wildcards > 0 && (first || s.deepWildcards > 0); first = false {
		var ok bool
		if _, rest, ok = strings.Cut(rest, "."); !ok || rest == "" {
			break
		}
		if h := s.hosts["*."+rest]; h != nil && (first || h.anyDepth) {
			return h
		}
	}
	return s.hosts[""]
}

// hasRoute reports whether a route belongs to the host with exactly this name.
func (s *siteRoutes) hasRoute(name string, r *route) bool {
	h := s.hosts[name]
	return h != nil && slices.Contains(h.routes, r)
}

// listener returns the name of the listener that a host belongs to. ok is false when there is none.
func (s *siteRoutes) listener(name string) (listener string, ok bool) {
	for text := name; text != ""; text = wildcardOf(strings.TrimPrefix(text, "*.")) {
		if _, ok = s.listeners[text]; ok {
			return text, true
		}
	}
	_, ok = s.listeners[""]
	return "", ok
}

// listens reports whether a host belongs to a listener.
func (s *siteRoutes) listens(name string) bool {
	_, ok := s.listener(name)
	return ok
}

// misdirected reports whether a request's host belongs to another listener than the handshake's server name.
func (s *siteRoutes) misdirected(server, host string) bool {
	if len(s.listeners) == 0 {
		return false
	}
	one, ok := s.listener(server)
	other, have := s.listener(host)
	return one != other || ok != have
}

// isStream reports whether connections for a host are streams.
func (s *siteRoutes) isStream(name string) bool {
	h := s.find(name)
	return h != nil && h.stream != nil
}

// count adds by to the counters of the kinds of hosts that h belongs to. by is -1 for a host that is removed.
func (s *siteRoutes) count(h *host, by int) {
	if h == nil {
		return
	}
	for _, c := range []struct {
		counter *int
		counts  bool
	}{{&s.streams, h.stream != nil}, {&s.wildcards, strings.HasPrefix(h.name, "*.")}, {&s.deepWildcards, h.anyDepth}} {
		if c.counts {
			*c.counter += by
		}
	}
}

// routingBuilder is a routing that is being made. The sites in owned are copies that may be changed.
type routingBuilder struct {
	*routing
	owned   map[string]bool
	touched bool
	// accountsOwned says that accounts is a copy, and sessionsOwned that sessions is one.
	accountsOwned, sessionsOwned bool
}

// writableAccounts returns a copy of the accounts that may be changed.
func (e *routingBuilder) writableAccounts() map[string]string {
	if !e.accountsOwned {
		e.accountsOwned = true
		if e.accounts = maps.Clone(e.accounts); e.accounts == nil {
			e.accounts = map[string]string{}
		}
	}
	return e.accounts
}

// site returns a copy of a site that may be changed.
func (e *routingBuilder) site(name string) *siteRoutes {
	if !e.touched {
		e.touched = true
		e.sites = maps.Clone(e.sites)
	}
	if !e.owned[name] {
		e.owned[name] = true
		s := &siteRoutes{hosts: map[string]*host{}}
		if from := e.sites[name]; from != nil {
			*s = *from
			s.hosts = maps.Clone(from.hosts)
		}
		e.sites[name] = s
	}
	return e.sites[name]
}

// setHost adds or replaces a host.
func (e *routingBuilder) setHost(h *host) {
	s := e.site(h.site)
	s.count(s.hosts[h.name], -1)
	s.count(h, 1)
	s.hosts[h.name] = h
}

func (e *routingBuilder) remove(site, name string) {
	s := e.site(site)
	s.count(s.hosts[name], -1)
	delete(s.hosts, name)
	e.removeEmpty(site)
}

// removeEmpty removes a site that has neither a host nor a section.
func (e *routingBuilder) removeEmpty(name string) {
	if s := e.sites[name]; s != nil && len(s.hosts) == 0 && !s.present {
		delete(e.sites, name)
		delete(e.owned, name)
	}
}

// applySite replaces the settings of a site in next.
func (p *Proxy) applySite(next *routingBuilder, key string, value json.RawMessage, present bool) error {
	name := strings.TrimPrefix(key, table.KindSite+"/")
	s := next.site(name)
	s.present, s.closed, s.clients, s.listeners = present, "", nil, nil
	if !present {
		next.removeEmpty(name)
		return nil
	}
	var from table.Site
	if err := unmarshalStrict(value, &from); err != nil {
		// A site that cannot be read may have restricted access, so it is closed.
		err = fmt.Errorf("reading the site: %w", err)
		s.closed = err.Error()
		return err
	}
	if from.ClientAuthorities != "" {
		s.clients = &clients{authorities: objectOf(p.objects.authorities, from.ClientAuthorities), optional: from.ClientOptional}
	}
	if len(from.Listeners) > 0 {
		s.listeners = make(map[string]struct{}, len(from.Listeners))
		for _, l := range from.Listeners {
			s.listeners[l] = struct{}{}
		}
	}
	return nil
}
