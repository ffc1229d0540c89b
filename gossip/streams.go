// SPDX-License-Identifier: Apache-2.0

package gossip

import (
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
	// ALPN is the name of streams in a ClientHello.
	ALPN = "coracle-gossip/1"
	// handshakeTimeout is how long the other end may take to say who it is.
	handshakeTimeout = 10 * time.Second
	// maxUnauthenticated is how many connections may be about to say who they are; see connlimit.
	maxUnauthenticated = 256

	nodeGroup = "system:nodes"
)

// Streams opens and takes connections with members whose certificates have been verified.
type Streams interface {
	// Accept returns the next one that another member opened; net.ErrClosed after Close.
	Accept() (net.Conn, error)
	Dial(ctx context.Context, address string) (net.Conn, error)
	// Close ends Accept. Connections that it returned stay.
	Close() error
}

// Trust says whose certificates make a machine of the cluster.
type Trust struct {
	// Own is this machine's certificate: the API server's on a server, the kubelet's as a client on an agent. It is
	// read for each connection, since it is renewed.
	Own func() (*tls.Certificate, error)
	// ServerCA signs API servers' certificates, ClientCA those of nodes.
	ServerCA, ClientCA *x509.CertPool
	// Now is the time; nil means time.Now.
	Now func() time.Time
}

// Config is for both ends of a stream: the one that listens is as little trusted as the one that calls.
func (t Trust) Config() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{ALPN},
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.Own() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.Own() },
		ClientAuth:           tls.RequireAnyClientCert, // verified by VerifyConnection
		// Addresses change, and any member is as good as another: VerifyConnection says what is checked instead.
		InsecureSkipVerify:     true,
		VerifyConnection:       t.verify,
		SessionTicketsDisabled: true,
	}
}

// verify takes the API server of the cluster and its nodes, whichever end they are.
func (t Trust) verify(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != ALPN || len(s.PeerCertificates) == 0 {
		return errors.New("gossip: the other end is no member")
	}
	leaf := s.PeerCertificates[0]
	o := x509.VerifyOptions{Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if t.Now != nil {
		o.CurrentTime = t.Now()
	}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	switch {
	case leaf.Subject.CommonName == protocol.ServerName:
		o.Roots = t.ServerCA
	case slices.Contains(leaf.Subject.Organization, nodeGroup):
		o.Roots = t.ClientCA
	default:
		return fmt.Errorf("gossip: the certificate of %q is neither a server's nor a node's", leaf.Subject.CommonName)
	}
	if _, err := leaf.Verify(o); err != nil {
		return fmt.Errorf("gossip: the other end's certificate: %w", err)
	}
	return nil
}

// tlsStreams are Streams over TCP and TLS.
type tlsStreams struct {
	listener        net.Listener
	config          *tls.Config
	unauthenticated connlimit.Table
	ready           chan net.Conn // unbuffered: this side owns a connection until a caller takes it
	closed          chan struct{}
	once            sync.Once
	running         sync.WaitGroup
}

// NewStreams takes connections from a listener, on which TLS has not begun, and does TLS by t.
func NewStreams(l net.Listener, t Trust) Streams {
	s := &tlsStreams{
		listener: l, config: t.Config(), unauthenticated: connlimit.Table{Max: maxUnauthenticated},
		ready: make(chan net.Conn), closed: make(chan struct{}),
	}
	s.running.Go(s.listen)
	return s
}

func (s *tlsStreams) listen() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return // a route of the machine's port: it has no other errors than being closed
		}
		s.running.Go(func() { s.handshake(raw) })
	}
}

func (s *tlsStreams) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	identified, ok := s.unauthenticated.Add(raw.RemoteAddr(), cancel)
	if !ok {
		_ = raw.Close() // there is no one to report it to
		return
	}
	defer identified()
	c := tls.Server(raw, s.config)
	if c.HandshakeContext(ctx) != nil {
		_ = raw.Close() // a client without the key
		return
	}
	select {
	case s.ready <- c:
	case <-s.closed:
		_ = c.Close() // there is no one to report it to
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
