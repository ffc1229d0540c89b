// SPDX-License-Identifier: Apache-2.0

// Package peertls makes the connections between a cluster's servers. They use TLS 1.3. Both ends present a certificate
// of the cluster's CA for servers (pki.PeerCA) and accept no other. The dates of a certificate do not count: a server
// whose clock is wrong, or whose certificate could not be renewed, still counts for the store's majority.
//
// The store trusts a client with such a connection without another check. The package holds the server's own
// certificate while the process runs, and uses a renewed one at once. It never reads or writes files. It never decides
// which server the other end is: the store's handshake does (raftstore/peer).
package peertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/highfd"
)

// Protocol is the ALPN name of connections between stores, by which one port serves them beside others.
const Protocol = "coracle-peer/1"

// Options are the parameters of New.
type Options struct {
	// CA is the PEM of the CA for servers. Only its first certificate, which signs servers' certificates, is trusted: a
	// root after it may have signed the cluster's other CAs as well.
	CA []byte
	// Name is the DNS name that is in every server's certificate.
	Name string
}

// Identity is a server's identity towards the cluster's other servers.
type Identity struct {
	name           string
	ca             *x509.Certificate
	roots          *x509.CertPool // has ca alone
	ownCertificate atomic.Pointer[tls.Certificate]
}

var errNoCertificate = errors.New("this server has no certificate for the other servers yet")

// New returns an Identity without a certificate. Use sets the certificate.
func New(o Options) (*Identity, error) {
	i := &Identity{name: o.Name, roots: x509.NewCertPool()}
	if i.name == "" {
		return nil, errors.New("peertls.Options.Name is required")
	}
	signers, err := cert.ParseCertsPEM(o.CA)
	if err != nil {
		return nil, fmt.Errorf("peertls.Options.CA: %w", err)
	}
	i.ca = signers[0]
	i.roots.AddCert(i.ca)
	return i, nil
}

// Use sets the certificate for new connections. It is a pki.Leaf.Use.
func (i *Identity) Use(certPEM, keyPEM []byte) error {
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("loading the certificate for the other servers: %w", err)
	}
	i.ownCertificate.Store(&c)
	return nil
}

func (i *Identity) certificate() (*tls.Certificate, error) {
	if c := i.ownCertificate.Load(); c != nil {
		return c, nil
	}
	return nil, errNoCertificate
}

// config returns the configuration for an end of a connection. usage is that of the other end's certificate. crypto/tls
// checks that the other end has the certificate's key, and verify all else.
func (i *Identity) config(protocol string, usage x509.ExtKeyUsage) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{protocol},
		ServerName:           i.name,
		ClientCAs:            i.roots, // named in the request for a certificate
		ClientAuth:           tls.RequireAnyClientCert,
		InsecureSkipVerify:   true,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection:     func(s tls.ConnectionState) error { return i.verify(s, protocol, usage) },
		// A resumed connection does not present a certificate again.
		SessionTicketsDisabled: true,
	}
}

// verify checks the protocol, as the connection may be meant for another service, and the certificate: its usage, the
// server's name, and that the CA itself signed it, and not another CA that it has signed. The certificate may not be
// valid yet or have expired, and so may the CA's. It may also end after the CA's, which has been renewed on the server
// that it is from.
func (i *Identity) verify(s tls.ConnectionState, protocol string, usage x509.ExtKeyUsage) error {
	if s.NegotiatedProtocol != protocol {
		return errors.New("tls: the other end does not ask for a connection between servers (ALPN)")
	}
	leaf := *s.PeerCertificates[0]
	leaf.NotBefore, leaf.NotAfter = time.Time{}, i.ca.NotAfter
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: i.roots, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: i.ca.NotAfter})
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	if !slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool { return len(chain) == 2 }) {
		return errors.New("tls: the other end's certificate was not signed by the authority for servers itself")
	}
	return leaf.VerifyHostname(i.name)
}

// Network returns the network of a store with this address, whose connections l accepts.
func (i *Identity) Network(address string, l net.Listener) *raftstore.Network {
	return &raftstore.Network{Address: address, Listener: i.Listener(l), Dial: i.Dial}
}

// Listener returns a listener whose connections are *tls.Conn on those of l. The handshake happens in the first Read or
// Write, under its deadline. That call returns the handshake's error.
func (i *Identity) Listener(l net.Listener) net.Listener { return i.ListenerFor(Protocol, l) }

// ListenerFor does what Listener does, for another protocol between servers.
func (i *Identity) ListenerFor(protocol string, l net.Listener) net.Listener {
	return tls.NewListener(l, i.config(protocol, x509.ExtKeyUsageClientAuth))
}

// Dial connects to another server. That server checks this server's certificate only after Dial has returned (TLS 1.3):
// a refusal is the error of the first Read. When this process dies, the kernel closes the connection before all others
// (highfd), so that the other servers notice at once.
func (i *Identity) Dial(ctx context.Context, address string) (net.Conn, error) {
	return i.dial(ctx, Protocol, address, highfd.Conn)
}

// DialFor connects as Dial does, for another protocol between servers and without highfd.
func (i *Identity) DialFor(ctx context.Context, protocol, address string) (net.Conn, error) {
	return i.dial(ctx, protocol, address, func(c net.Conn) net.Conn { return c })
}

func (i *Identity) dial(ctx context.Context, protocol, address string, prepare func(net.Conn) net.Conn) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(prepare(raw), i.config(protocol, x509.ExtKeyUsageServerAuth))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = c.NetConn().Close() // closing TLS would send a message to a peer that does not read
		return nil, err
	}
	return c, nil
}
