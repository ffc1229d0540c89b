// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// authorities is one section of authorities. Sites and backends hold a pointer to it, so that a change rebuilds
// neither.
type authorities struct {
	trusted atomic.Pointer[trustedPool] // nil while the section is absent or bad
	shared
}

func (o *objects) applyAuthorities(key string, value json.RawMessage, present bool) error {
	a := objectOf(o.authorities, key)
	a.present = present
	a.trusted.Store(nil)
	defer o.resetTLS(func(b *backendTLS) bool { return b.authorities == a })
	if !present {
		return nil
	}
	var from table.Authorities
	if err := unmarshalStrict(value, &from); err != nil {
		return fmt.Errorf("reading authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(from.Certificates)) {
		return errors.New("the authorities hold no certificate")
	}
	a.trusted.Store(&trustedPool{pool: pool, verified: map[[sha256.Size]byte]verification{}})
	return nil
}

// pool returns the authorities' certificates. It returns nil while they are absent.
func (a *authorities) pool() *x509.CertPool {
	if t := a.trusted.Load(); t != nil {
		return t.pool
	}
	return nil
}

// backendTLS is a compiled table.BackendTLS. Only backends with an equal table.BackendTLS share their connections.
type backendTLS struct {
	from        table.BackendTLS
	authorities *authorities // nil for the system's authorities
	certificate *certificate // of the proxy; nil for none
	clients     atomic.Pointer[tlsTransports]
	shared
}

// tlsTransports holds a transport for HTTP/1.1 and one for HTTP/2.
type tlsTransports struct{ http1, http2 *http.Transport }

func (c *tlsTransports) closeIdle() {
	c.http1.CloseIdleConnections()
	c.http2.CloseIdleConnections()
}

// backendTLSOf returns the backendTLS for a table.BackendTLS. It makes one only if no equal one exists.
func (o *objects) backendTLSOf(from *table.BackendTLS) *backendTLS {
	key, _ := json.Marshal(from) // a struct of texts has no errors
	b := o.tls[string(key)]
	if b == nil {
		b = &backendTLS{from: *from}
		if from.Authorities != "" {
			b.authorities = objectOf(o.authorities, from.Authorities)
		}
		if from.Certificate != "" {
			b.certificate = objectOf(o.certificates, from.Certificate)
		}
		b.clients.Store(o.upstream.makeTLSTransports(b.config()))
		o.tls[string(key)] = b
	}
	return b
}

// resetTLS gives backends new clients, so that no connection is used for longer than the certificates that it was
// verified with. Connections with a request under way end with that request.
func (o *objects) resetTLS(of func(*backendTLS) bool) {
	for _, b := range o.tls {
		if of(b) {
			b.clients.Swap(o.upstream.makeTLSTransports(b.config())).closeIdle()
		}
	}
}

func (b *backendTLS) marked(sweep uint64) {
	b.lastSweep = sweep
	if b.authorities != nil {
		b.authorities.lastSweep = sweep
	}
	if b.certificate != nil {
		b.certificate.lastSweep = sweep
	}
}

// unverified returns a config that accepts any certificate, since nothing says for which name it should be.
func unverified() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// config returns the TLS config of a backend. It verifies certificates itself, for their names may differ from the one
// that is sent in the handshake. b may be nil.
func (b *backendTLS) config() *tls.Config {
	out := unverified()
	if b == nil {
		return out
	}
	out.ServerName = b.from.ServerName
	if !b.from.Unverified {
		out.VerifyConnection = b.verify
	}
	if b.certificate != nil {
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if pair := b.certificate.pair.Load(); pair != nil {
				return pair, nil
			}
			return nil, errors.New("the proxy's own certificate for this backend is absent or cannot be used")
		}
	}
	return out
}

// verify returns an error when a backend's certificate is not trusted.
func (b *backendTLS) verify(state tls.ConnectionState) error {
	var roots *x509.CertPool
	if b.authorities != nil {
		if roots = b.authorities.pool(); roots == nil {
			return errors.New("the authorities that sign the backend's certificate are absent or cannot be used")
		}
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("the backend has no certificate")
	}
	leaf := state.PeerCertificates[0]
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return fmt.Errorf("verifying the backend's certificate: %w", err)
	}
	names := b.from.Names
	if len(names) == 0 {
		names = []string{b.from.ServerName}
	}
	if !slices.ContainsFunc(names, func(name string) bool { return isFor(leaf, name) }) {
		return fmt.Errorf("the backend's certificate is not for %s", strings.Join(names, ", "))
	}
	return nil
}

// isFor reports whether a certificate is for a name: a DNS name, with or without a wildcard as its first label, an
// address, or a URI.
func isFor(leaf *x509.Certificate, name string) bool {
	if strings.Contains(name, "://") {
		return slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return u.String() == name })
	}
	domain, wildcard := strings.CutPrefix(name, "*.")
	if !wildcard {
		return name != "" && leaf.VerifyHostname(name) == nil
	}
	return slices.ContainsFunc(leaf.DNSNames, func(have string) bool {
		label, rest, _ := strings.Cut(have, ".")
		return label != "" && strings.EqualFold(rest, domain)
	})
}
