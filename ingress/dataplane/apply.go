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
			err = p.objects.applyCertificate(c.Key, value, present)
		case table.KindSite:
			err = p.applySite(next, c.Key, value, present)
		case table.KindAuthorities:
			err = p.objects.applyAuthorities(c.Key, value, present)
		case table.KindEndpoints:
			err = p.objects.applyEndpoints(c.Key, value, present)
		case table.KindUsers:
			err = p.objects.applyUsers(c.Key, value, present)
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
		p.objects.sweep(next.routing)
	}
	return p.currentProblems()
}

func (p *Proxy) applyHost(next *routingBuilder, key string, value json.RawMessage, present bool) error {
	site, name, ok := table.HostOf(key)
	switch {
	case !present:
		if ok {
			next.remove(site, name)
			delete(p.objects.counted, key)
		}
		return nil
	case !ok:
		return fmt.Errorf("%q is not the key of a host", key)
	}
	var from table.Host
	if err := unmarshalStrict(value, &from); err != nil {
		// A host that cannot be read may have restricted access, so it is closed.
		err = fmt.Errorf("reading the host: %w", err)
		next.setHost(&host{site: site, name: name, stats: p.objects.statsOf(key), final: true, routes: []*route{{refused: err.Error()}}})
		return err
	}
	h, err := compiler{p.objects}.compile(site, name, &from)
	h.stats = p.objects.statsOf(key)
	next.setHost(h)
	return err
}

// unmarshalStrict reads JSON. It returns an error for a field that this version does not know.
func unmarshalStrict(value json.RawMessage, to any) error {
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	return d.Decode(to)
}

func (o *objects) applyCertificate(key string, value json.RawMessage, present bool) error {
	c := objectOf(o.certificates, key)
	c.present = present
	defer o.resetTLS(func(b *backendTLS) bool { return b.certificate == c })
	if !present {
		c.pair.Store(nil)
		return nil
	}
	var from table.Certificate
	if err := json.Unmarshal(value, &from); err != nil {
		c.pair.Store(nil)
		return fmt.Errorf("reading the certificate: %w", err)
	}
	return c.load(&from)
}

func (o *objects) applyEndpoints(key string, value json.RawMessage, present bool) error {
	s := objectOf(o.endpoints, key)
	s.present = present
	var from table.Endpoints
	if present {
		if err := json.Unmarshal(value, &from); err != nil {
			s.setAddresses(nil)
			return fmt.Errorf("reading the endpoints: %w", err)
		}
	}
	list, err := addresses(from.Addresses, o.upstream.refuse)
	s.setAddresses(list)
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
