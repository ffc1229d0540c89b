// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// clientVerification is a compiled table.Clients.
type clientVerification struct {
	*table.Clients
	authorities *authorities
	subject     *pattern // nil for any
}

func (c compiler) compileClients(from *table.Clients) (*clientVerification, error) {
	out := &clientVerification{Clients: from, authorities: objectOf(c.authorities, from.Authorities)}
	if from.Subject != "" {
		var err error
		if out.subject, err = c.patternOf(from.Subject, expression.Anywhere); err != nil {
			return nil, fmt.Errorf("reading the expression for the subject of clients' certificates: %w", err)
		}
	}
	return out, nil
}

// maxSubject limits the length of a certificate's subject that is compared with an expression, in bytes. The client may
// have made the certificate.
const maxSubject = 1024

// Headers for backends about a client's certificate, with the values that nginx gives them.
const (
	headerVerify  = "Ssl-Client-Verify"
	headerSubject = "Ssl-Client-Subject-Dn"
	headerIssuer  = "Ssl-Client-Issuer-Dn"
	headerCert    = "Ssl-Client-Cert"
)

// certificates returns the certificates that the client sent, its own first.
func (r *request) certificates() []*x509.Certificate {
	if r.in.TLS == nil {
		return nil
	}
	return r.in.TLS.PeerCertificates
}

// certify reports whether the client's certificate lets the request pass. If it does not, certify has answered the
// request.
func (a *authentication) certify(c *clientVerification) bool {
	trusted := c.authorities.trusted.Load()
	if trusted == nil {
		a.answer(http.StatusServiceUnavailable,
			"the authorities of clients' certificates are not known; the events of the route's object say why")
		return false
	}
	all := a.certificates()
	if len(all) == 0 {
		switch {
		case c.Optional || c.Unverified:
			a.verified = "NONE"
		case a.sniMismatch():
			a.answer(http.StatusMisdirectedRequest, "this host asks for certificates on connections of its own")
			return false
		default:
			a.uncertified(c, "a certificate is needed")
			return false
		}
	} else if err := trusted.verify(all, time.Now()); err == nil {
		a.verified = "SUCCESS"
	} else {
		a.proxy.options.Logger.Debug("a client's certificate is not trusted", "host", a.in.Host, "error", err)
		a.verified = "FAILED:" + reason(err)
		if !c.Unverified {
			a.uncertified(c, "the certificate is not trusted")
			return false
		}
	}
	if c.subject != nil {
		name := ""
		if len(all) > 0 {
			name = all[0].Subject.String()
		}
		fits := len(name) <= maxSubject && c.subject.compare(name, &a.steps) == matches
		if a.steps.releaseQueue(); !fits {
			a.answer(http.StatusForbidden, "the certificate is not one that this route lets in")
			return false
		}
	}
	return true
}

// sniMismatch reports whether the connection was made for another host, for which clients are not asked for
// certificates.
func (r *request) sniMismatch() bool {
	if r.in.TLS == nil {
		return false
	}
	s := r.routing.sites[r.listener.site]
	name, _ := hostName(r.in.Host)
	h := s.find(serverName(r.in.TLS))
	return h != s.find(name) && (h == nil || !h.wantsClientCert)
}

func (a *authentication) uncertified(c *clientVerification, why string) {
	if c.ErrorPage != "" {
		a.redirect(http.StatusFound, c.ErrorPage)
		return
	}
	a.answer(http.StatusBadRequest, why)
}

// reason returns the cause of an error in a few words, without its details.
func reason(err error) string {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "certificate has expired"
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return "unable to verify the first certificate"
	}
	return "certificate rejected"
}

// present sets the headers for a backend that describe the client's certificate. They replace such headers from the
// client.
func (c *clientVerification) present(in *request, verified string, h http.Header) {
	for _, name := range []string{headerVerify, headerSubject, headerIssuer, headerCert} {
		delete(h, name)
	}
	h[headerVerify] = []string{verified}
	all := in.certificates()
	if len(all) == 0 {
		return
	}
	h[headerSubject], h[headerIssuer] = []string{printable(all[0].Subject.String())}, []string{printable(all[0].Issuer.String())}
	if c.Pass {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: all[0].Raw})
		h[headerCert] = []string{url.PathEscape(string(text))}
	}
}

// printable replaces characters that a header may not hold, since the client chooses the names in a certificate.
func printable(text string) string {
	out := []byte(text)
	for i, c := range out {
		if c < ' ' || c == 0x7f {
			out[i] = '?'
		}
	}
	return string(out)
}

// maxTrusted limits how many results for certificates are cached for one set of authorities.
const maxTrusted = 4096

// distrustTime is the time for which the result for an untrusted certificate is cached.
const distrustTime = time.Minute

// trustedPool holds the certificates of authorities, and a cache of results for clients' certificates. Verifying a
// certificate takes longer than a request. A client may send, with each request of a connection, a chain that takes
// very long to verify.
type trustedPool struct {
	pool *x509.CertPool

	mu       sync.Mutex
	verified map[[sha256.Size]byte]verification
}

// verification is a cached result. It is valid until expiry.
type verification struct {
	err    error // nil for a certificate that is trusted
	expiry time.Time
}

// verify returns an error when a client's certificate is not trusted. all is not empty.
func (t *trustedPool) verify(all []*x509.Certificate, now time.Time) error {
	sum := sha256.New()
	for _, c := range all {
		_, _ = sum.Write(c.Raw) // never fails
	}
	key := [sha256.Size]byte(sum.Sum(nil))
	t.mu.Lock()
	v, known := t.verified[key]
	t.mu.Unlock()
	if known && now.Before(v.expiry) {
		return v.err
	}
	v = t.verifyChain(all, now)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.verified) >= maxTrusted {
		clear(t.verified)
	}
	t.verified[key] = v
	return v.err
}

func (t *trustedPool) verifyChain(all []*x509.Certificate, now time.Time) verification {
	o := x509.VerifyOptions{
		Roots: t.pool, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range all[1:] {
		o.Intermediates.AddCert(c)
	}
	chains, err := all[0].Verify(o)
	if err != nil {
		return verification{fmt.Errorf("verifying a client's certificate: %w", err), now.Add(distrustTime)}
	}
	end := all[0].NotAfter
	for _, c := range chains[0] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return verification{nil, end}
}
