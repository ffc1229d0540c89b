// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/certificate"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// Memory is what of one Desired the next need not do again: what follows from a single object, for as long as it is the
// same one. Objects must not change, as those of informers do not. It must not be used by two calls at a time.
type Memory struct {
	options, lastOptions           map[*networkingv1.Ingress]*options
	certificates, lastCertificates map[*corev1.Secret]judged

	defaults  *defaults
	configMap *corev1.ConfigMap // that of defaults
}

// judged is what a Secret is as a certificate.
type judged struct {
	flaw    string          // why it is none; empty for one that is
	section json.RawMessage // of the table; nil for what is none
	names   []string        // of its DNS names, in lower case; its common name where it has none
}

// isFor says whether the certificate has a host's name. A host that is a wildcard may have one for some of its names.
func (j judged) isFor(host string) bool {
	_, domain, _ := strings.Cut(host, ".")
	wildcard := "*." + domain
	return strings.HasPrefix(host, "*.") || slices.Contains(j.names, host) || slices.Contains(j.names, wildcard)
}

// begin forgets what the last call has not asked for.
func (m *Memory) begin(s State) {
	m.use(s)
	m.lastOptions, m.options = m.options, make(map[*networkingv1.Ingress]*options, len(m.options))
	m.lastCertificates, m.certificates = m.certificates, make(map[*corev1.Secret]judged, len(m.certificates))
}

// memory is what is remembered with the defaults of this state.
func (s State) memory() *Memory {
	m := s.Memory
	if m == nil {
		m = &Memory{}
	}
	m.use(s)
	return m
}

// use reads the defaults for all Ingresses where they are others; what is remembered of Ingresses has the former ones.
func (m *Memory) use(s State) {
	if m.defaults == nil || m.configMap != s.Defaults {
		m.defaults, m.configMap = defaultsOf(s.Defaults, s.Rules), s.Defaults
		m.options, m.lastOptions = nil, nil
	}
}

// optionsOf remembers what an Ingress' annotations ask for.
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

// certificateOf remembers what a Secret, which may be nil, is as a certificate.
func (m *Memory) certificateOf(s *corev1.Secret) judged {
	c, ok := m.certificates[s]
	if ok {
		return c
	}
	if c, ok = m.lastCertificates[s]; !ok {
		var leaf *x509.Certificate
		if leaf, c.flaw = certificate.Parse(s); c.flaw == "" {
			if c.names = leaf.DNSNames; len(c.names) == 0 {
				c.names = []string{leaf.Subject.CommonName}
			}
			for i, name := range c.names {
				c.names[i] = strings.ToLower(name)
			}
			// texts: it cannot fail
			c.section, _ = json.Marshal(table.Certificate{Chain: string(s.Data[corev1.TLSCertKey]),
				Key: string(s.Data[corev1.TLSPrivateKeyKey])})
		}
	}
	m.certificates[s] = c
	return c
}
