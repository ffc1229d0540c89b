// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"fmt"
	"slices"
)

// useServing stores the API server's certificate, which this server's other TLS listeners use too. It is a Leaf.Use.
func (p *PKI) useServing(certPEM, keyPEM []byte) error {
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("loading the API server's certificate: %w", err)
	}
	if root := p.Root().Raw; !slices.ContainsFunc(c.Certificate, func(der []byte) bool { return slices.Equal(der, root) }) {
		c.Certificate = append(c.Certificate, root)
	}
	p.serving.Store(&c)
	return nil
}

// Serving returns the current certificate of APIServer, with its chain up to the root that tokens pin. It is nil before
// that leaf was ensured.
func (p *PKI) Serving() (*tls.Certificate, error) { return p.serving.Load(), nil }
