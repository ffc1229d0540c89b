// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
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
	roots, err := cert.NewPool(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's authority: %w", err)
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
			return verifyServer(s.PeerCertificates, roots, now())
		},
	}
	if protocol != "" {
		c.NextProtos = []string{protocol}
	}
	return c, nil
}

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
