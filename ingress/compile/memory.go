// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/certificate"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// Memory is a cache of results that the next Desired need not compute again. Each follows from a single object, and is
// valid while the object is the same. Objects must not change, as those of informers do not. Two calls must not use it
// at the same time.
type Memory struct {
	options, lastOptions           map[*networkingv1.Ingress]*options
	certificates, lastCertificates map[*corev1.Secret]checkedSecret
	expressions, lastExpressions   map[expressionKey]readExpression
	users, lastUsers               map[usersKey]readUsers

	defaults  *defaults
	configMap *corev1.ConfigMap // the one that defaults was read from
}

type checkedSecret struct {
	flaw    string          // why it is invalid; empty for a valid certificate
	section json.RawMessage // of the table; nil for an invalid one
	names   []string        // DNS names in lower case, or the common name if it has none
	validity
	isAuthority bool     // ca.crt holds authorities
	authorities validity // of the authority in ca.crt that ends last
}

// isFor reports whether the certificate is for a host. For a wildcard host the result is true, since the certificate
// may be for some of its names.
func (j checkedSecret) isFor(host string) bool {
	_, domain, _ := strings.Cut(host, ".")
	wildcard := "*." + domain
	return strings.HasPrefix(host, "*.") || slices.Contains(j.names, host) || slices.Contains(j.names, wildcard)
}

// evictUnused evicts the results that the last call has not used.
func (m *Memory) evictUnused(s State) {
	m.useDefaults(s)
	m.lastOptions, m.options = m.options, make(map[*networkingv1.Ingress]*options, len(m.options))
	m.lastCertificates, m.certificates = m.certificates, make(map[*corev1.Secret]checkedSecret, len(m.certificates))
	m.lastExpressions, m.expressions = m.expressions, make(map[expressionKey]readExpression, len(m.expressions))
	m.lastUsers, m.users = m.users, make(map[usersKey]readUsers, len(m.users))
}

// memory returns the cache, with the defaults of this state.
func (s State) memory() *Memory {
	m := cmp.Or(s.Memory, &Memory{})
	m.useDefaults(s)
	return m
}

// useDefaults reads the defaults for all Ingresses if they have changed. It then evicts the cached options, which
// contain the old defaults.
func (m *Memory) useDefaults(s State) {
	if m.defaults == nil || m.configMap != s.Defaults {
		m.defaults, m.configMap = defaultsOf(s.Defaults, s.Rules), s.Defaults
		m.options, m.lastOptions = nil, nil
	}
}

// optionsOf returns the options of an Ingress, from the cache if they are in it.
func (m *Memory) optionsOf(ing *networkingv1.Ingress) *options {
	if o, ok := m.options[ing]; ok {
		return o
	}
	o, ok := m.lastOptions[ing]
	if !ok {
		now := optionsOf(ing, m.defaults)
		o = &now
	}
	if m.options == nil {
		m.options = map[*networkingv1.Ingress]*options{}
	}
	m.options[ing] = o
	return o
}

// certificateOf returns the result of checking a Secret, which may be nil, from the cache if it is in it.
func (m *Memory) certificateOf(s *corev1.Secret) checkedSecret {
	c, ok := m.certificates[s]
	if ok {
		return c
	}
	if c, ok = m.lastCertificates[s]; !ok {
		if s != nil && len(s.Data[keyAuthorities]) <= certificate.MaxChain {
			c.authorities = lastOf(s.Data[keyAuthorities])
			c.isAuthority = x509.NewCertPool().AppendCertsFromPEM(s.Data[keyAuthorities])
		}
		var leaf *x509.Certificate
		if leaf, c.flaw = certificate.Parse(s); c.flaw == "" {
			c.validity = validity{leaf.NotBefore, leaf.NotAfter}
			if c.names = leaf.DNSNames; len(c.names) == 0 {
				c.names = []string{leaf.Subject.CommonName}
			}
			for i, name := range c.names {
				c.names[i] = strings.ToLower(name)
			}
			// a struct of texts has no errors
			c.section, _ = json.Marshal(table.Certificate{Chain: string(s.Data[corev1.TLSCertKey]),
				Key: string(s.Data[corev1.TLSPrivateKeyKey])})
		}
	}
	m.certificates[s] = c
	return c
}
