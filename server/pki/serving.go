// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
)

// useServing stores the API server's certificate, which this server's other TLS listeners use too. It is a Leaf.Use.
func (p *PKI) useServing(certPEM, keyPEM []byte) error {
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("loading the API server's certificate: %w", err)
	}
	for _, root := range []*x509.Certificate{p.authority(ServerCA).root(), p.root} {
		if !slices.ContainsFunc(c.Certificate, func(der []byte) bool { return slices.Equal(der, root.Raw) }) {
			c.Certificate = append(c.Certificate, root.Raw)
		}
	}
	p.serving.Store(&c)
	return nil
}

// Serving returns the current certificate of APIServer, with its chain up to the root. The root that tokens pin comes
// last: after a renewal that is the former one. It is nil before that leaf was ensured.
func (p *PKI) Serving() (*tls.Certificate, error) { return p.serving.Load(), nil }
