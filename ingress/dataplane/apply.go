// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// Apply changes the table. Unchanged sections are not built again. All changes take effect for requests at one moment,
// except endpoints and certificates, which take effect shortly before. It returns the problems of all sections of the
// new table, by their keys. Calls may come from several goroutines, and are serialised.
func (p *Proxy) Apply(changes []table.Change) (problems map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apply(changes)
}

// Replace makes the given table the current one. Sections that are not in it are removed. It returns the same as Apply.
func (p *Proxy) Replace(sections table.Sections) (problems map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.apply(table.Diff(p.sections, sections))
}

func (p *Proxy) apply(changes []table.Change) map[string]string {
	now := p.current.Load()
	next := &routingBuilder{routing: &routing{sites: now.sites, accounts: now.accounts, sessions: now.sessions, trusted: p.trusted,
		proxied: p.proxied, cluster: p.cluster}, owned: map[string]bool{}}
	for _, c := range changes {
		if c.Commit {
			continue
		}
		p.sections.Apply(c)
		value, present := p.sections[c.Key]
		delete(p.problems, c.Key)
		var err error
		switch table.Kind(c.Key) {
		case table.KindHost:
			err = p.applyHost(next, c.Key, value, present)
		case table.KindCertificate:
			err = p.applyCertificate(c.Key, value, present)
		case table.KindSite:
			err = p.applySite(next, c.Key, value, present)
		case table.KindAuthorities:
			err = p.applyAuthorities(c.Key, value, present)
		case table.KindEndpoints:
			err = p.applyEndpoints(c.Key, value, present)
		case table.KindUsers:
			err = p.applyUsers(c.Key, value, present)
		case table.KindChallenges:
			err = applyChallenges(next, c.Key, value, present)
		case table.KindSessions:
			err = applySessions(next, c.Key, value, present)
		case table.KindHTTP3:
			err = p.applyHTTP3(c.Key, value, present)
		case table.KindSettings:
			err = p.applySettings(value, present)
			next.trusted, next.proxied, next.cluster = p.trusted, p.proxied, p.cluster
		default:
			if present {
				err = fmt.Errorf("this version of the proxy knows no section of the kind %q", table.Kind(c.Key))
			}
		}
		if err != nil {
			p.problems[c.Key] = err.Error()
		}
	}
	p.current.Store(next.routing)
	if next.touched {
		p.sweep()
	}
	return p.currentProblems()
}

// applyHost replaces one host in next.
func (p *Proxy) applyHost(next *routingBuilder, key string, value json.RawMessage, present bool) error {
	site, name, ok := table.HostOf(key)
	switch {
	case !present:
		if ok {
			next.remove(site, name)
			delete(p.counted, key)
		}
		return nil
	case !ok:
		return fmt.Errorf("%q is not the key of a host", key)
	}
	var from table.Host
	if err := strict(value, &from); err != nil {
		// A host that cannot be read may have restricted access, so it is closed.
		err = fmt.Errorf("reading the host: %w", err)
		next.put(&host{site: site, name: name, stats: p.statsOf(key), final: true, routes: []*route{{refused: err.Error()}}})
		return err
	}
	h, err := p.compile(site, name, &from)
	h.stats = p.statsOf(key)
	next.put(h)
	return err
}

// strict reads JSON. It returns an error for a field that this version does not know.
func strict(value json.RawMessage, to any) error {
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	return d.Decode(to)
}

func (p *Proxy) applyCertificate(key string, value json.RawMessage, present bool) error {
	c := p.certificate(key)
	c.present = present
	defer p.resetTLS(func(b *backendTLS) bool { return b.certificate == c })
	if !present {
		c.pair.Store(nil)
		return nil
	}
	var from table.Certificate
	if err := json.Unmarshal(value, &from); err != nil {
		c.pair.Store(nil)
		return fmt.Errorf("reading the certificate: %w", err)
	}
	return c.set(&from)
}

func (p *Proxy) applyEndpoints(key string, value json.RawMessage, present bool) error {
	s := p.endpointSet(key)
	s.present = present
	var from table.Endpoints
	if present {
		if err := json.Unmarshal(value, &from); err != nil {
			s.set(nil)
			return fmt.Errorf("reading the endpoints: %w", err)
		}
	}
	list, err := addresses(from.Addresses, p.options.Refuse)
	s.set(list)
	return err
}

func (p *Proxy) applySettings(value json.RawMessage, present bool) error {
	p.trusted, p.proxied, p.cluster = nil, false, nil
	p.complained.Store(false)
	var from table.Settings
	if !present {
		return nil
	}
	if err := json.Unmarshal(value, &from); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	p.proxied = from.ProxyProtocol
	var problem error
	for _, list := range []struct {
		to   *[]netip.Prefix
		from []string
	}{{&p.trusted, from.TrustedProxies}, {&p.cluster, from.ClusterNetworks}} {
		for _, text := range list.from {
			network, err := netip.ParsePrefix(text)
			if err != nil {
				problem = fmt.Errorf("reading a network of trusted proxies or of the cluster: %w", err)
				continue
			}
			*list.to = append(*list.to, network.Masked())
		}
	}
	return problem
}

// certificate returns the certificate of a section, which need not exist yet.
func (p *Proxy) certificate(key string) *certificate {
	c := p.certificates[key]
	if c == nil {
		c = &certificate{}
		p.certificates[key] = c
	}
	return c
}

// endpointSet returns the endpoint set of a section, which need not exist yet.
func (p *Proxy) endpointSet(key string) *endpointSet {
	s := p.endpoints[key]
	if s == nil {
		s = &endpointSet{}
		p.endpoints[key] = s
	}
	return s
}

// sweep evicts endpoints, certificates and others that no host and no section names.
func (p *Proxy) sweep() {
	p.sweeps++
	p.standard.mark = p.sweeps
	for _, s := range p.current.Load().sites {
		if s.clients != nil {
			s.clients.authorities.mark = p.sweeps
		}
		for _, h := range s.hosts {
			if h.certificate != nil {
				h.certificate.mark = p.sweeps
			}
			if h.stream != nil {
				h.stream.mark(p.sweeps)
			}
			for _, r := range h.routes {
				r.mark(p.sweeps)
				r.expression.marked(p.sweeps)
				r.conditions.mark(p.sweeps)
				if r.policy != nil {
					r.policy.mark(p.sweeps)
				}
			}
		}
	}
	maps.DeleteFunc(p.endpoints, func(_ string, s *endpointSet) bool { return !s.present && s.mark != p.sweeps })
	maps.DeleteFunc(p.limiters, func(_ string, l *limiter) bool { return l.mark != p.sweeps })
	maps.DeleteFunc(p.users, func(_ string, s *userSet) bool { return !s.present && s.mark != p.sweeps })
	maps.DeleteFunc(p.patterns, func(_ patternKey, e *pattern) bool { return e.mark != p.sweeps })
	p.sweepTLS()
	maps.DeleteFunc(p.certificates, func(_ string, c *certificate) bool { return !c.present && c.mark != p.sweeps })
}

// currentProblems returns the problems of all sections. It adds hosts and sites whose certificate or authorities are
// absent.
func (p *Proxy) currentProblems() map[string]string {
	out := maps.Clone(p.problems)
	for site, s := range p.current.Load().sites {
		if s.clients != nil && s.clients.authorities.pool() == nil && out[table.SiteKey(site)] == "" {
			out[table.SiteKey(site)] = "the authorities that sign clients' certificates are absent or cannot be used; no client gets in"
		}
		for name, h := range s.hosts {
			if h.certificate == nil || h.certificate.pair.Load() != nil {
				continue
			}
			if key := table.HostKey(site, name); out[key] == "" {
				out[key] = "the certificate is absent or cannot be used; clients get the default certificate, which they do not trust"
			}
		}
	}
	return out
}
