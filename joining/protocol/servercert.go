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

// ServerTLS makes the settings of a connection to a server of the cluster that a machine has joined. The authority is
// read from caFile (PEM) at each call. protocol is the name in ALPN that the server has to agree to; "" offers none,
// which leads to the API server. now is the time at which the certificate is checked; nil means time.Now.
//
// The address at which a server is reached may be any: an agent passes connections on, and addresses change. So what
// counts is the authority and the common name of the certificate, and not the address. Whether a certificate is for the
// very address that was dialled is a second question, which NamesAddress answers.
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
		// The address may be any that leads to a server; VerifyConnection says what is checked instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != protocol {
				return errors.New("it is no server that nodes connect to")
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

// NamesAddress says whether the certificate that was shown is for the address, host:port, that was dialled. If it is
// not, another machine may have passed the connection on to a server: an agent does.
func NamesAddress(s tls.ConnectionState, address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && len(s.PeerCertificates) > 0 && s.PeerCertificates[0].VerifyHostname(host) == nil
}
