// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/joining/protocol"
)

const (
	// ALPN is the protocol name of streams in a ClientHello.
	ALPN = "coracle-gossip/1"
	// handshakeTimeout limits the TLS handshake with the other end.
	handshakeTimeout = 10 * time.Second
	// maxUnauthenticated is how many unauthenticated connections may be open; see connlimit.
	maxUnauthenticated = 256

	nodeGroup = "system:nodes"
)

// Streams opens and accepts connections with members whose certificates have been verified.
type Streams interface {
	// Accept returns the next connection that another member opened, or net.ErrClosed after Close.
	Accept() (net.Conn, error)
	Dial(ctx context.Context, address string) (net.Conn, error)
	// Close ends Accept. Connections that it returned stay open.
	Close() error
}

// Trust has the certificates by which a machine of the cluster is recognised.
type Trust struct {
	// Protocol is the name of the protocol in a ClientHello; ALPN if it is empty. The same certificates count for other
	// protocols between machines.
	Protocol string
	// Own returns this machine's certificate: the API server's on a server, the kubelet's client certificate on an
	// agent. It is called for each connection, since the certificate is renewed.
	Own func() (*tls.Certificate, error)
	// ServerCA signs API servers' certificates. ClientCA signs nodes' certificates.
	ServerCA, ClientCA *x509.CertPool
	// Refuses, if set, returns why a node's certificate is refused, or nil.
	Refuses func(*x509.Certificate) error
	// Now returns the time by which nodes' certificates are checked. nil means time.Now.
	Now func() time.Time
}

// Config returns the configuration for both ends of a stream: the listening end is not trusted more than the dialing
// one.
func (t Trust) Config() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{t.protocol()},
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.Own() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.Own() },
		ClientAuth:           tls.RequireAnyClientCert, // verified by VerifyConnection
		// Addresses change, and any member is as good as another. VerifyConnection checks the certificate instead.
		InsecureSkipVerify:     true,
		VerifyConnection:       t.verify,
		SessionTicketsDisabled: true,
	}
}

// verify accepts the cluster's API servers and nodes, at either end. The dates of servers' certificates do not count: a
// wrong clock must not keep servers from finding one another. So a server's certificate is checked as of the end of its
// validity. If that fails because this machine still has an authority that was renewed, the certificate is checked as
// of now.
func (t Trust) verify(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != t.protocol() || len(s.PeerCertificates) == 0 {
		return errors.New("gossip: the other end is no member")
	}
	leaf := s.PeerCertificates[0]
	o := x509.VerifyOptions{Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: t.now()}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	switch {
	case leaf.Subject.CommonName == protocol.ServerName:
		o.Roots, o.CurrentTime = t.ServerCA, leaf.NotAfter
	case slices.Contains(leaf.Subject.Organization, nodeGroup):
		o.Roots = t.ClientCA
	default:
		return fmt.Errorf("gossip: the certificate of %q is neither a server's nor a node's", leaf.Subject.CommonName)
	}
	_, err := leaf.Verify(o)
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if ok && invalid.Reason == x509.Expired && t.now().Before(leaf.NotAfter) {
		o.CurrentTime = t.now()
		_, err = leaf.Verify(o)
	}
	if err != nil {
		return fmt.Errorf("gossip: the other end's certificate: %w", err)
	}
	if t.Refuses != nil {
		return t.Refuses(leaf)
	}
	return nil
}

func (t Trust) protocol() string { return cmp.Or(t.Protocol, ALPN) }

func (t Trust) now() time.Time {
	if t.Now == nil {
		return time.Now()
	}
	return t.Now()
}

// tlsStreams accepts and opens TCP connections, and authenticates both ends by TLS.
type tlsStreams struct {
	listener        net.Listener
	config          *tls.Config
	unauthenticated connlimit.Table
	ready           chan net.Conn // unbuffered: this side owns a connection until a caller takes it
	closed          chan struct{}
	once            sync.Once
	running         sync.WaitGroup
}

// NewStreams accepts connections from a listener, on which TLS has not begun, and does the handshakes with t's
// configuration.
func NewStreams(l net.Listener, t Trust) Streams {
	s := &tlsStreams{
		listener: l, config: t.Config(), unauthenticated: connlimit.Table{Max: maxUnauthenticated},
		ready: make(chan net.Conn), closed: make(chan struct{}),
	}
	s.running.Go(s.acceptConns)
	return s
}

func (s *tlsStreams) acceptConns() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return // a route of the machine's port: it fails only when it is closed
		}
		s.running.Go(func() { s.handshake(raw) })
	}
}

func (s *tlsStreams) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	identified, ok := s.unauthenticated.Add(raw.RemoteAddr(), cancel)
	if !ok {
		_ = raw.Close() // the error cannot be reported to a caller
		return
	}
	defer identified()
	c := tls.Server(raw, s.config)
	if c.HandshakeContext(ctx) != nil {
		_ = raw.Close() // a client without a member's certificate
		return
	}
	select {
	case s.ready <- c:
	case <-s.closed:
		_ = c.Close() // the error cannot be reported to a caller
	case <-ctx.Done():
		_ = c.Close() // it is not accepted any more
	}
}

func (s *tlsStreams) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *tlsStreams) Dial(ctx context.Context, address string) (net.Conn, error) {
	return (&tls.Dialer{Config: s.config}).DialContext(ctx, "tcp", address)
}

func (s *tlsStreams) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		err = s.listener.Close()
		s.unauthenticated.Close()
	})
	s.running.Wait()
	return err
}
