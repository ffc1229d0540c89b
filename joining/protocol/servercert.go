// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"k8s.io/client-go/util/cert"
)

// ServerTLS returns the settings of a connection to a server of the cluster that a machine has joined. It reads the
// authority from caFile (PEM) at each call. protocol is the ALPN name that the server has to accept. "" sends none,
// which leads to the API server. now returns the time at which the certificate is checked. nil means time.Now.
//
// A server may be reached at any address: an agent forwards connections, and addresses change. So authority and common
// name of the certificate are checked, and the address is not. NamesAddress reports whether a certificate is for the
// dialed address.
func ServerTLS(caFile, protocol string, now func() time.Time) (*tls.Config, error) {
	authorities, err := cert.CertsFromFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's authority: %w", err)
	}
	roots := x509.NewCertPool()
	for _, c := range authorities {
		roots.AddCert(c)
	}
	if now == nil {
		now = time.Now
	}
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The address may be any that leads to a server. VerifyConnection checks the certificate instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != protocol {
				return errors.New("it is not the certificate of a server for nodes")
			}
			if err := verifyServer(s.PeerCertificates, roots, now()); err != nil {
				return &RefusedCertificateError{Reason: refusalReason(s.PeerCertificates, authorities, now(), err), err: err}
			}
			return nil
		},
	}
	if protocol != "" {
		c.NextProtos = []string{protocol}
	}
	return c, nil
}

// RefusedCertificateError means that this machine refuses the certificate that a server presented.
type RefusedCertificateError struct {
	// Reason says which certificate is wrong and why.
	Reason string
	err    error
}

func (e *RefusedCertificateError) Error() string { return e.Reason }

func (e *RefusedCertificateError) Unwrap() error { return e.err }

// refusalReason says why a chain of a server is refused: dates come first, since the error of package x509 names no
// authority that has ended.
func refusalReason(chain, authorities []*x509.Certificate, now time.Time, err error) string {
	if len(chain) == 0 {
		return err.Error()
	}
	issuer := chain[len(chain)-1].RawIssuer
	issuers := slices.DeleteFunc(slices.Clone(authorities), func(a *x509.Certificate) bool { return !bytes.Equal(a.RawSubject, issuer) })
	for _, c := range slices.Concat(issuers, chain) {
		switch {
		case now.After(c.NotAfter):
			return fmt.Sprintf("the certificate of %s ended on %s, by this machine's clock (%s)", c.Subject, formatDay(c.NotAfter), formatDay(now))
		case now.Before(c.NotBefore):
			return fmt.Sprintf("the certificate of %s is valid only from %s on, and this machine's clock shows %s", c.Subject,
				formatDay(c.NotBefore), formatDay(now))
		}
	}
	if len(issuers) == 0 {
		return fmt.Sprintf("it was signed by %s, and this machine trusts %s", chain[len(chain)-1].Issuer, authorities[0].Subject)
	}
	return err.Error()
}

func formatDay(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// verifyServer checks a chain, the leaf first. Nodes may have certificates of the same authority, with other common
// names.
func verifyServer(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("it shows no certificate")
	}
	leaf := chain[0]
	v := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range chain[1:] {
		v.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(v); err != nil {
		return err
	}
	if leaf.Subject.CommonName != ServerName {
		return fmt.Errorf("its certificate is that of %s", leaf.Subject.CommonName)
	}
	return nil
}

// NamesAddress reports whether the presented certificate is for the dialed address, host:port. If it is not, another
// machine may have forwarded the connection to a server, as an agent does.
func NamesAddress(s tls.ConnectionState, address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && len(s.PeerCertificates) > 0 && s.PeerCertificates[0].VerifyHostname(host) == nil
}
