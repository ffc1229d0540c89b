// SPDX-License-Identifier: Apache-2.0

// Package peertls makes the connections between a cluster's servers: TLS 1.3 in which both ends show a certificate of
// the cluster's authority for servers (pki.PeerCA) and accept no other.
//
// A client that opens such a connection is trusted by the store without further question. The package holds the
// server's own certificate for as long as the process runs and takes a renewed one into use at once. It never reads or
// writes files and never decides which of the servers the other end is: the store's handshake does (raftstore/peer).
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

// Protocol is the name that the stores' connections have in ALPN, by which one port serves them beside others.
const Protocol = "coracle-peer/1"

// Options say whom to trust.
type Options struct {
	// CA is the PEM of the authority for servers. Its first certificate, the one that signs servers' certificates, is
	// trusted and no other: a root further down may have signed the cluster's other authorities as well.
	CA []byte
	// Name is the DNS name that is in every server's certificate.
	Name string
	// Now is the time certificates are checked at; nil means time.Now.
	Now func() time.Time
}

// Identity is one server among the cluster's.
type Identity struct {
	name  string
	roots *x509.CertPool
	now   func() time.Time
	own   atomic.Pointer[tls.Certificate]
}

var errNoCertificate = errors.New("this server has no certificate for the other servers yet")

// New returns an identity without a certificate; Use gives it one.
func New(o Options) (*Identity, error) {
	i := &Identity{name: o.Name, roots: x509.NewCertPool(), now: o.Now}
	if i.name == "" {
		return nil, errors.New("peertls.Options.Name is required")
	}
	signers, err := cert.ParseCertsPEM(o.CA)
	if err != nil {
		return nil, fmt.Errorf("peertls.Options.CA: %w", err)
	}
	i.roots.AddCert(signers[0])
	if i.now == nil {
		i.now = time.Now
	}
	return i, nil
}

// Use takes a certificate into use for connections made from now on. It has the form of pki.Leaf.Use.
func (i *Identity) Use(certPEM, keyPEM []byte) error {
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("loading the certificate for the other servers: %w", err)
	}
	i.own.Store(&c)
	return nil
}

func (i *Identity) certificate() (*tls.Certificate, error) {
	if c := i.own.Load(); c != nil {
		return c, nil
	}
	return nil, errNoCertificate
}

// config serves both ends. crypto/tls checks chain, dates and usage of the other end's certificate: as a client's where
// this end is called, as a server's where it calls.
func (i *Identity) config(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{protocol},
		ServerName:           i.name,
		RootCAs:              i.roots,
		ClientCAs:            i.roots,
		ClientAuth:           tls.RequireAndVerifyClientCert,
		Time:                 i.now,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection:     func(s tls.ConnectionState) error { return i.verify(s, protocol) },
		// A connection that is resumed shows no certificate again, so one that has expired would stay good.
		SessionTicketsDisabled: true,
	}
}

// verify adds what crypto/tls leaves to its user: the protocol, without which a connection may be meant for another
// service, the name in a caller's certificate, and that the authority itself signed it, which may have signed another
// authority too.
func (i *Identity) verify(s tls.ConnectionState, protocol string) error {
	if s.NegotiatedProtocol != protocol {
		return errors.New("tls: the other end does not ask for a connection between servers (ALPN)")
	}
	if !slices.ContainsFunc(s.VerifiedChains, func(chain []*x509.Certificate) bool { return len(chain) == 2 }) {
		return errors.New("tls: the other end's certificate was not signed by the authority for servers itself")
	}
	return s.PeerCertificates[0].VerifyHostname(i.name)
}

// Network is what a store that is reached at address, over l, is given to talk to the other servers' stores.
func (i *Identity) Network(address string, l net.Listener) *raftstore.Network {
	return &raftstore.Network{Address: address, Listener: i.Listener(l), Dial: i.Dial}
}

// Listener gives the connections of l as *tls.Conn. The handshake happens with the first Read or Write, so its
// deadlines are the receiver's; what it fails of is that call's error.
func (i *Identity) Listener(l net.Listener) net.Listener { return i.ListenerFor(Protocol, l) }

// ListenerFor is Listener for another protocol between servers.
func (i *Identity) ListenerFor(protocol string, l net.Listener) net.Listener {
	return tls.NewListener(l, i.config(protocol))
}

// Dial connects to another server. That one checks this server's certificate only after Dial has returned (TLS 1.3): a
// refusal is the error of the first Read. When this process dies, the connection breaks before everything else does: by
// that the others know at once.
func (i *Identity) Dial(ctx context.Context, address string) (net.Conn, error) {
	return i.dial(ctx, Protocol, address, highfd.Conn)
}

// DialFor is Dial for another protocol between servers.
func (i *Identity) DialFor(ctx context.Context, protocol, address string) (net.Conn, error) {
	return i.dial(ctx, protocol, address, func(c net.Conn) net.Conn { return c })
}

func (i *Identity) dial(ctx context.Context, protocol, address string, prepare func(net.Conn) net.Conn) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(prepare(raw), i.config(protocol))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = c.NetConn().Close() // TLS' own end would be a message to a peer that does not read
		return nil, err
	}
	return c, nil
}
