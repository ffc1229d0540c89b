// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// certificate is one section. Hosts hold a pointer to it, so that a renewal rebuilds no host.
type certificate struct {
	pair atomic.Pointer[tls.Certificate] // nil while the section is absent or bad
	shared
}

// load reads the table's section. If the section holds no valid certificate, c has none afterwards.
func (c *certificate) load(from *table.Certificate) error {
	pair, err := tls.X509KeyPair([]byte(from.Chain), []byte(from.Key))
	if err != nil {
		c.pair.Store(nil)
		return fmt.Errorf("the certificate cannot be used: %w", err)
	}
	c.pair.Store(&pair)
	return nil
}

// tlsConfig returns the TLS config of a site's listeners. It takes the certificate of the host that the client names,
// else the table's default, else the proxy's own.
func (p *Proxy) tlsConfig(site string) *tls.Config {
	out := p.streamTLS(site)
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return p.inspectHello(site, hello) }
	return out
}

// streamTLS returns the TLS config of streams that end TLS at the proxy.
func (p *Proxy) streamTLS(site string) *tls.Config {
	out := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if name, ok := hostName(hello.ServerName); ok {
				if h := p.current.Load().find(site, name); h != nil && h.certificate != nil {
					if pair := h.certificate.pair.Load(); pair != nil {
						return pair, nil
					}
				}
			}
			if pair := p.defaultCert.pair.Load(); pair != nil {
				return pair, nil
			}
			return p.fallbackCert, nil
		},
	}
	if s := p.current.Load().sites[site]; s != nil && s.clients != nil {
		s.clients.demand(out)
	}
	return out
}

// inspectHello checks a client's first message. It refuses clients, turns connections into streams, and asks for
// certificates. It returns nil to keep the listener's own config.
func (p *Proxy) inspectHello(site string, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	s := p.current.Load().sites[site]
	conn, _ := hello.Conn.(*helloConn)
	if s == nil {
		return nil, nil //nolint:nilnil // as the type says
	}
	name, ok := hostName(hello.ServerName)
	if !ok || s.closed != "" || len(s.listeners) > 0 && !s.listens(name) {
		_ = hello.Conn.Close() // without an alert, which the Gateway API's conformance suite does not take for a refusal
		return nil, fmt.Errorf("no host %q is served here", hello.ServerName)
	}
	h := s.find(name)
	if h != nil && h.stream != nil {
		if conn == nil {
			return nil, errors.New("the host became a stream when the connection had begun")
		}
		return nil, conn.becomeStream(h)
	}
	if conn != nil {
		conn.release()
	}
	asks := h != nil && h.wantsClientCert
	if s.clients == nil && !asks {
		return nil, nil //nolint:nilnil // as the type says
	}
	out := p.streamTLS(site)
	out.NextProtos = []string{"h2", "http/1.1"}
	if s.clients == nil {
		out.ClientAuth = tls.RequestClientCert // each route checks the certificate
	}
	return out, nil
}

// demand makes the handshake ask clients for their certificates. Sessions are not resumed, so that each connection's
// certificate is verified by the current authorities.
func (c *clients) demand(config *tls.Config) {
	config.SessionTicketsDisabled = true
	if c.optional {
		config.ClientAuth = tls.RequestClientCert
		return
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	if config.ClientCAs = c.authorities.pool(); config.ClientCAs == nil {
		config.ClientCAs = x509.NewCertPool() // accepts no client
	}
}

// serverName returns the name of the host that a client sent in its handshake (SNI).
func serverName(state *tls.ConnectionState) string {
	name, _ := hostName(state.ServerName)
	return name
}

// ownCertificate makes the certificate for hosts without one while the table has no default. No client trusts it. Each
// process makes another one.
func ownCertificate(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the default certificate: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Coracle ingress default certificate"},
		DNSNames:    []string{"ingress.local"},
		NotBefore:   now.Add(-24 * time.Hour),
		NotAfter:    now.AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	chain, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the default certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{chain}, PrivateKey: key}, nil
}
