// SPDX-License-Identifier: Apache-2.0

// Package tunnels is what a server knows of the nodes that keep a connection open to it (nodetunnel): it takes these
// connections, opens streams over them for the API server, and tells when each node was last heard.
//
// A connection speaks for the node whose certificate it showed and for no other one. It leads to that node's addresses
// and to the addresses of its pods, as the Node object has them. The package never judges whether a node lives:
// server/liveness does.
package tunnels

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

const (
	// identify is how long a connection may take to show a certificate, maxUnknown how many may be at it at a time.
	identify   = 10 * time.Second
	maxUnknown = 256
	// mostOfOne is how many connections of one node are kept. A server has two names at times, and a connection that
	// has broken off is closed only after a while: with one more, the oldest goes.
	mostOfOne = 4

	nodeUser  = "system:node:"
	nodeGroup = "system:nodes"
)

// Options are all required but Logger.
type Options struct {
	// Listener gives the connections of nodetunnel.Protocol, before TLS.
	Listener net.Listener
	// Certificate is the API server's: nodes know its authority and its name.
	Certificate func() (*tls.Certificate, error)
	// ClientCA is the PEM of the authority for nodes' certificates. Its first certificate counts.
	ClientCA []byte
	// Now is the time at which certificates are checked.
	Now    func() time.Time
	Logger *slog.Logger
}

// Table has the connections of all nodes.
type Table struct {
	o     Options
	roots *x509.CertPool

	arrived timers.Signal // who receives it looks at all nodes

	mu     sync.Mutex
	nodes  map[string]*entry
	owner  Owner
	closed bool // no node is wanted now
}

// entry is what is known of a node.
type entry struct {
	sessions []*nodetunnel.Session // the newest last
	last     time.Time             // heard over connections that have ended
	direct   bool                  // this server has reached the node without a tunnel
	from     string                // the address that it connected from last
}

// host is an address without its port.
func host(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// New returns a Table that Run fills.
func New(o Options) (*Table, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	t := &Table{o: o, roots: x509.NewCertPool(), nodes: map[string]*entry{}, arrived: timers.NewSignal()}
	signers, err := cert.ParseCertsPEM(o.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("the authority of nodes: %w", err)
	}
	t.roots.AddCert(signers[0])
	return t, nil
}

// Run takes connections until ctx is done, and returns when none is left.
func (t *Table) Run(ctx context.Context) error {
	if err := connlimit.Serve(ctx, t.o.Listener, maxUnknown, t.serve); err != nil {
		return fmt.Errorf("waiting for nodes: %w", err)
	}
	return nil
}

// serve keeps one connection until it ends.
func (t *Table) serve(ctx context.Context, raw net.Conn, identified func()) {
	_ = raw.SetDeadline(time.Now().Add(identify)) // a connection without deadlines fails at once
	conn := tls.Server(raw, t.config())
	if err := conn.HandshakeContext(ctx); err != nil {
		t.o.Logger.Debug("a connection that may have been a node's was not taken", "from", raw.RemoteAddr().String(), "reason", err)
		return
	}
	node, err := nodeOf(conn.ConnectionState())
	if err != nil {
		return // the handshake has checked it
	}
	identified()
	_ = raw.SetDeadline(time.Time{})
	s, err := nodetunnel.NewSession(conn)
	if err != nil {
		return
	}
	defer t.add(node, s, host(raw.RemoteAddr()))()
	t.o.Logger.Info("a node is connected", "node", node, "from", raw.RemoteAddr().String())
	err = s.Wait()
	if ctx.Err() == nil {
		t.o.Logger.Info("a node's connection has ended", "node", node, "from", raw.RemoteAddr().String(), "reason", err)
	}
}

func (t *Table) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{nodetunnel.Protocol},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.o.Certificate() },
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      t.roots,
		Time:           t.o.Now,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := nodeOf(s)
			return err
		},
		// A connection that is resumed shows no certificate again.
		SessionTicketsDisabled: true,
	}
}

var errNoNode = errors.New("tls: the certificate is not a node's")

// nodeOf is the node whose certificate was shown.
func nodeOf(s tls.ConnectionState) (string, error) {
	if s.NegotiatedProtocol != nodetunnel.Protocol {
		return "", errors.New("tls: the other end does not ask for a node's connection (ALPN)")
	}
	// Signed by the authority itself, which may have signed another authority too.
	if !slices.ContainsFunc(s.VerifiedChains, func(chain []*x509.Certificate) bool { return len(chain) == 2 }) {
		return "", errNoNode
	}
	leaf := s.PeerCertificates[0]
	node, ok := strings.CutPrefix(leaf.Subject.CommonName, nodeUser)
	if !ok || node == "" || !slices.Contains(leaf.Subject.Organization, nodeGroup) {
		return "", errNoNode
	}
	return node, nil
}

// add keeps a connection until the function that it returns is called.
func (t *Table) add(node string, s *nodetunnel.Session, from string) (remove func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		go func() { _ = s.Close() }() // it may take a moment; its own goroutine removes it
	}
	e := t.nodes[node]
	if e == nil {
		e = &entry{}
		t.nodes[node] = e
	}
	if e.from != from {
		e.direct = false // it has moved; a connection from where it was may look open for minutes
	}
	e.from = from
	e.sessions = append(e.sessions, s)
	t.arrived.Send()
	for _, oldest := range e.sessions[:max(len(e.sessions)-mostOfOne, 0)] { // those too that are being closed already
		go func() { _ = oldest.Close() }() // it may take a moment; its own goroutine removes it
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		e.sessions = slices.DeleteFunc(e.sessions, func(other *nodetunnel.Session) bool { return other == s })
		if h := s.Heard(); h.After(e.last) {
			e.last = h
		}
	}
}

// Contact is what this server hears of a node.
type Contact struct {
	// Last is when something came from the node.
	Last time.Time
	// Open says that it has a connection to this server now.
	Open bool
	// Direct says that this server has reached the node without the tunnel, at the address that it connects from: it
	// can find out that it does not any more.
	Direct bool
}

// Contact says what this server hears of a node; ok is false if it never heard of it.
func (t *Table) Contact(node string) (c Contact, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[node]
	if e == nil {
		return Contact{}, false
	}
	c = Contact{Last: e.last, Open: len(e.sessions) > 0, Direct: e.direct}
	for _, s := range e.sessions {
		if h := s.Heard(); h.After(c.Last) {
			c.Last = h
		}
	}
	return c, true
}

// Arrived gives a value when nodes have connected since the last one.
func (t *Table) Arrived() <-chan struct{} { return t.arrived }

// Indirect are the nodes that are connected and were never reached otherwise, with the address that each connected from
// last.
func (t *Table) Indirect() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]string{}
	for name, e := range t.nodes {
		if !e.direct && len(e.sessions) > 0 {
			out[name] = e.from
		}
	}
	return out
}

// Reached notes that this server has reached a node without its tunnel.
func (t *Table) Reached(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.nodes[node]; e != nil {
		e.direct = true
	}
}

// RemoveDeleted drops what is known of nodes that have no connection and are gone.
func (t *Table) RemoveDeleted(deleted func(node string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.nodes, func(name string, e *entry) bool { return len(e.sessions) == 0 && deleted(name) })
}

// Drain closes all connections, and those that come later, until it is called with false. A node whose connection is
// closed turns to another server.
func (t *Table) Drain(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = on
	if !on {
		return
	}
	for _, e := range t.nodes {
		for _, s := range e.sessions {
			go func() { _ = s.Close() }() // it may take a moment; its own goroutine removes it
		}
	}
}

// session is the newest of a node's connections.
func (t *Table) session(node string) *nodetunnel.Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[node]
	if e == nil || len(e.sessions) == 0 {
		return nil
	}
	return e.sessions[len(e.sessions)-1]
}
