// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/convert"
)

// site is a port of a Gateway.
type site struct {
	name          string
	gateway       *gateway
	listeners     map[string]*listener // by the name of their hosts
	hosts         map[string]bool
	listenerHosts map[string]bool // the hosts that do not come from routes
}

// maxNames limits the hosts that the certificates of one listener add.
const maxNames = 256

func (g *gateway) ports() map[int32]*site {
	out := map[int32]*site{}
	for _, l := range g.listenersInOrder() {
		if !l.programmed().ok() {
			continue
		}
		s := out[l.spec.Port]
		if s == nil {
			s = &site{
				name: Site(g.object.Namespace, g.object.Name, l.spec.Port), gateway: g,
				listeners: map[string]*listener{}, hosts: map[string]bool{}, listenerHosts: map[string]bool{},
			}
			out[l.spec.Port] = s
		}
		s.listeners[l.host] = l
		s.hosts[l.host], s.listenerHosts[l.host] = true, true
		for _, a := range l.attached {
			for _, h := range a.hosts {
				s.hosts[h] = true
			}
		}
		if l.names() > 0 { // each certificate is used for its own hosts
			for _, cert := range l.certificates {
				for n := range cert.names {
					if both, ok := intersect(l.host, n); ok {
						s.hosts[both], s.listenerHosts[both] = true, true
					}
				}
			}
		}
	}
	return out
}

// names returns how many hosts the certificates of a listener may add.
func (l *listener) names() (names int) {
	for _, cert := range l.certificates {
		names += len(cert.names)
	}
	if len(l.certificates) < 2 || names > maxNames {
		return 0
	}
	return names
}

// sites adds the sections of a Gateway's ports.
func (c *compiler) sites(g *gateway) error {
	ports := g.ports()
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if err := c.site(ports[port], g.nodePort(port)); err != nil {
			return err
		}
	}
	return nil
}

// site adds the sections of one port.
func (c *compiler) site(s *site, nodePort uint16) error {
	out := table.Site{NodePort: nodePort}
	for _, l := range s.inOrder() {
		if l.tls() {
			out.TLS = true
			out.Listeners = append(out.Listeners, l.host)
		}
		if l.clients != nil {
			out.ClientAuthorities, out.ClientOptional = l.clients.key, l.clients.optional
			if err := c.r.Sections.Put(l.clients.key, l.clients.section()); err != nil {
				return err
			}
		}
	}
	if err := c.r.Sections.Put(table.SiteKey(s.name), out); err != nil {
		return err
	}
	for host := range s.hosts {
		if err := c.host(s, host); err != nil {
			return err
		}
	}
	if s.gateway.certificate == nil {
		return nil
	}
	return c.r.Sections.Put(s.gateway.certificate.key, s.gateway.certificate.pair)
}

// routesAt returns the routes for a host at its listener, in groups: those with the most specific names first, each
// route once.
func (s *site) routesAt(host string) (out [][]*route) {
	l := s.listenerOf(host)
	if l == nil {
		return nil
	}
	seen := map[*route]bool{}
	for pattern := range coveringNames(host) {
		var some []*route
		for _, r := range l.byHost()[pattern] {
			if !seen[r] {
				seen[r] = true
				some = append(some, r)
			}
		}
		if len(some) > 0 {
			out = append(out, some)
		}
	}
	return out
}

// inOrder returns the listeners, ordered by the names of their hosts.
func (s *site) inOrder() []*listener {
	return convert.Slice(slices.Sorted(maps.Keys(s.listeners)), func(host string) *listener { return s.listeners[host] })
}

// listenerOf returns the listener to which a host belongs: the one with the most specific match.
func (s *site) listenerOf(host string) *listener {
	for pattern := range coveringNames(host) {
		if l := s.listeners[pattern]; l != nil {
			return l
		}
	}
	return nil
}

// host adds the section of a host, with only those routes of its listener that have the host.
func (c *compiler) host(s *site, host string) error {
	l := s.listenerOf(host)
	if l == nil {
		return nil
	}
	out := table.Host{Final: true, AnyDepth: strings.HasPrefix(host, "*.")}
	if cert := l.certificateFor(host); cert != nil {
		out.Certificate = cert.key
		if err := c.r.Sections.Put(cert.key, cert.pair); err != nil {
			return err
		}
	}
	routes := s.routesAt(host)
	if len(l.kinds) > 0 && l.kinds[0] == kindTLS {
		out.Stream = &table.Stream{Terminate: !l.passthrough()}
		if len(routes) > 0 { // the oldest route of those with the most specific name
			out.Stream.Backends = routes[0][0].backendsAt(l)
		}
		return c.r.Sections.Put(table.HostKey(s.name, host), out)
	}
	out.Routes = []table.Route{}
	for _, some := range routes {
		out.Routes = append(out.Routes, routesOf(l, some)...)
	}
	return c.r.Sections.Put(table.HostKey(s.name, host), out)
}

// byHost returns the routes of a listener by the names of their hosts there, in the order of their age.
func (l *listener) byHost() map[string][]*route {
	if l.index != nil {
		return l.index
	}
	l.index = map[string][]*route{}
	for _, a := range l.attached {
		for _, h := range a.hosts {
			if !slices.Contains(l.index[h], a.route) {
				l.index[h] = append(l.index[h], a.route)
			}
		}
	}
	return l.index
}

// certificateFor returns the certificate for a host: the first that is for it, else the first.
func (l *listener) certificateFor(host string) *keyPair {
	if len(l.certificates) == 0 {
		return nil
	}
	if at := slices.IndexFunc(l.certificates, func(cert keyPair) bool { return cert.fits(host) }); len(l.certificates) > 1 && at >= 0 {
		return &l.certificates[at]
	}
	return &l.certificates[0]
}

func (r *route) backendsAt(l *listener) []table.Backend {
	if l.passthrough() {
		return r.streams.passed
	}
	return convert.Slice(r.streams.terminated, func(b table.Backend) table.Backend { return withCertificate(b, l.gateway) })
}

// orderedMatch is a match with the values that decide its precedence.
type orderedMatch struct {
	match
	routeIndex, ruleIndex, matchIndex int // indexes of the route by age, of the rule in the route, and of the match in the rule
}

// routesOf returns the table routes of some routes that have the same host, in the order of their precedence.
func routesOf(l *listener, routes []*route) []table.Route {
	var all []orderedMatch
	for i, r := range routes {
		for j := range r.rules {
			rule := &r.rules[j]
			policy := rule.policyAt(l)
			backends := convert.Slice(rule.backends, func(b table.Backend) table.Backend { return withCertificate(b, l.gateway) })
			for k, m := range rule.matches {
				m.Object, m.Policy, m.Backends = r.id(), policy, backends
				all = append(all, orderedMatch{m, i, j, k})
			}
		}
	}
	slices.SortFunc(all, func(a, b orderedMatch) int {
		return cmp.Or(a.rank-b.rank, b.length-a.length, b.second-a.second, b.headers-a.headers, b.query-a.query, a.routeIndex-b.routeIndex,
			a.ruleIndex-b.ruleIndex, a.matchIndex-b.matchIndex)
	})
	out := make([]table.Route, 0, len(all))
	for _, o := range all {
		out = append(out, o.Route)
	}
	return out
}
