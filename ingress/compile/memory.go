// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	// maxKey and maxChain bound the two parts of a certificate in bytes of PEM: each handshake sends the chain, and a key of RSA of 16,384 bits takes 2.8 s of a
	// processor for each handshake, one of 4,096 bits 6 ms.
	maxKey, maxChain = 8 << 10, 64 << 10
	// maxRSA bounds a key of RSA in bits.
	maxRSA = 4096
)

// Memory is what of one Desired the next need not do again: what follows from a single object, for as long as it is the same one. Objects must not change, as
// those of informers do not. It must not be used by two calls at a time.
type Memory struct {
	options, lastOptions           map[*networkingv1.Ingress]*options
	certificates, lastCertificates map[*corev1.Secret]certificate

	defaults  *defaults
	configMap *corev1.ConfigMap // that of defaults
}

// certificate is what a Secret is as one.
type certificate struct {
	flaw    string          // why it is none; empty for one that is
	section json.RawMessage // of the table; nil for what is none
}

// begin forgets what the last call has not asked for.
func (m *Memory) begin(s State) {
	m.use(s)
	m.lastOptions, m.options = m.options, make(map[*networkingv1.Ingress]*options, len(m.options))
	m.lastCertificates, m.certificates = m.certificates, make(map[*corev1.Secret]certificate, len(m.certificates))
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
func (m *Memory) certificateOf(s *corev1.Secret) certificate {
	c, ok := m.certificates[s]
	if ok {
		return c
	}
	if c, ok = m.lastCertificates[s]; !ok {
		if c.flaw = flawOf(s); c.flaw == "" {
			c.section, _ = json.Marshal(table.Certificate{Chain: string(s.Data[corev1.TLSCertKey]), Key: string(s.Data[corev1.TLSPrivateKeyKey])}) // texts: it cannot fail
		}
	}
	m.certificates[s] = c
	return c
}

// flawOf says why a Secret is no certificate that is served; empty for one that is. It may be nil.
func flawOf(s *corev1.Secret) string {
	if s == nil {
		return "does not exist"
	}
	chain, key := s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]
	if len(chain) > maxChain || len(key) > maxKey {
		return fmt.Sprintf("has %d bytes in tls.crt and %d in tls.key, and more than %d and %d are no certificate that is served", len(chain), len(key), maxChain, maxKey)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return "holds no certificate with its key in tls.crt and tls.key (" + err.Error() + ")"
	}
	if k, ok := pair.PrivateKey.(*rsa.PrivateKey); ok && k.N.BitLen() > maxRSA {
		return fmt.Sprintf("has an RSA key of %d bits, and more than %d take too long for each connection", k.N.BitLen(), maxRSA)
	}
	return ""
}
