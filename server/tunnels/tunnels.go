// SPDX-License-Identifier: Apache-2.0

// Package tunnels accepts the connections that nodes keep open to a server (nodetunnel). It opens streams over them for
// the API server, and records the last contact with each node.
//
// A connection belongs to the node of its certificate, and to no other. It leads to that node's addresses and to the
// addresses of its pods, as in the Node object. The package never decides whether a node is alive: server/liveness
// does.
//
// Its goroutines: one for each node's connection, and two of yamux's; reports of readiness, one for each node when it
// changes, 21 s at most; closings, which are not waited for.
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
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

const (
	// identifyTimeout is how long a connection may take to authenticate. maxUnknown is how many may do so concurrently.
	identifyTimeout = 10 * time.Second
	maxUnknown      = 256
	// maxPerNode is how many connections of one node are kept. A server may have two names, and a broken connection is
	// closed only after a while. With one more connection the oldest is closed.
	maxPerNode = 4

	nodeUser  = "system:node:"
	nodeGroup = "system:nodes"
)

// All fields of Options are required, except Guard and Logger.
type Options struct {
	// Listener returns the connections of nodetunnel.Protocol, before TLS.
	Listener net.Listener
	// Certificate returns the API server's certificate: nodes know its CA and its name.
	Certificate func() (*tls.Certificate, error)
	// ClientCA is the PEM of the CA of nodes' certificates. Only its first certificate is used.
	ClientCA []byte
	// Guard refuses revoked nodes. nil refuses none.
	Guard *nodecreds.Guard
	// Now returns the time at which certificates are checked.
	Now    func() time.Time
	Logger *slog.Logger
}

// Table contains the connections of all nodes.
type Table struct {
	o     Options
	roots *x509.CertPool

	arrived timers.Signal // sent when a node has connected

	mu     sync.Mutex
	nodes  map[string]*entry
	owner  Owner
	closed bool // connections are closed at once (Drain)
	// unready is why this server is not ready for clients, empty if it is; see SetReadiness.
	unready string
	reports sync.WaitGroup // reports of it that nodes are receiving
}

// entry has the connections of a node, and the last contact with it.
type entry struct {
	sessions      []*nodetunnel.Session // the newest last
	lastContact   time.Time             // last contact over connections that have ended
	direct        bool                  // this server has reached the node without a tunnel
	connectedFrom string                // the address from which it connected last
}

// hostOf returns an address without its port.
func hostOf(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// New returns a Table. Run has to be called.
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

// Run accepts connections until ctx is done, and returns when none is left.
func (t *Table) Run(ctx context.Context) error {
	defer t.reports.Wait() // no connection is left, so they end
	if err := connlimit.Serve(ctx, t.o.Listener, maxUnknown, t.serve); err != nil {
		return fmt.Errorf("waiting for nodes: %w", err)
	}
	return nil
}

// serve serves one connection until it ends.
func (t *Table) serve(ctx context.Context, raw net.Conn, identified func()) {
	_ = raw.SetDeadline(time.Now().Add(identifyTimeout)) // if deadlines fail, the handshake fails, too
	conn := tls.Server(raw, t.config())
	if err := conn.HandshakeContext(ctx); err != nil {
		t.o.Logger.Debug("rejected a connection that may have been a node's", "from", raw.RemoteAddr().String(), "reason", err)
		return
	}
	node, err := nodeOf(conn.ConnectionState())
	if err != nil {
		return // the handshake has checked it already
	}
	release, err := t.o.Guard.Hold(conn.ConnectionState().PeerCertificates[0], func() { _ = raw.Close() })
	if err != nil {
		return // revoked since the handshake
	}
	defer release()
	identified()
	_ = raw.SetDeadline(time.Time{})
	s, err := nodetunnel.NewSession(conn)
	if err != nil {
		return
	}
	defer t.add(node, s, hostOf(raw.RemoteAddr()))()
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
			if _, err := nodeOf(s); err != nil {
				return err
			}
			return t.o.Guard.Refuses(s.PeerCertificates[0])
		},
		// A resumed connection does not present a certificate again.
		SessionTicketsDisabled: true,
	}
}

var errNoNode = errors.New("tls: the certificate is not a node's")

// nodeOf returns the node of the presented certificate.
func nodeOf(s tls.ConnectionState) (string, error) {
	if s.NegotiatedProtocol != nodetunnel.Protocol {
		return "", errors.New("tls: the other end does not ask for a node's connection (ALPN)")
	}
	// Only leaves of the CA itself are accepted, and not those of another CA that it has signed.
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

// add adds a connection to the table until remove is called.
func (t *Table) add(node string, s *nodetunnel.Session, from string) (remove func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		go func() { _ = s.Close() }() // it may take a moment; serve removes it
	}
	e := t.nodes[node]
	if e == nil {
		e = &entry{}
		t.nodes[node] = e
	}
	if e.connectedFrom != from {
		e.direct = false // it has moved; a connection from its former address may appear open for minutes
	}
	e.connectedFrom = from
	e.sessions = append(e.sessions, s)
	if t.unready != "" {
		t.report(s)
	}
	t.arrived.Send()
	for _, oldest := range e.sessions[:max(len(e.sessions)-maxPerNode, 0)] { // also those that are being closed
		go func() { _ = oldest.Close() }() // it may take a moment; serve removes it
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		e.sessions = slices.DeleteFunc(e.sessions, func(other *nodetunnel.Session) bool { return other == s })
		if h := s.LastContact(); h.After(e.lastContact) {
			e.lastContact = h
		}
	}
}

// Contact says when and how a server last had contact with a node.
type Contact struct {
	// Last is when the server last received something from the node.
	Last time.Time
	// Open says that the node has a connection to the server now.
	Open bool
	// Direct says that the server has reached the node without the tunnel, at the address from which it connects. A
	// check can therefore find that the node cannot be reached any more.
	Direct bool
}

// Contact returns this server's contact with a node. ok is false if there never was any.
func (t *Table) Contact(node string) (c Contact, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[node]
	if e == nil {
		return Contact{}, false
	}
	c = Contact{Last: e.lastContact, Open: len(e.sessions) > 0, Direct: e.direct}
	for _, s := range e.sessions {
		if h := s.LastContact(); h.After(c.Last) {
			c.Last = h
		}
	}
	return c, true
}

// Arrived returns a channel that receives a value when nodes have connected since the last value.
func (t *Table) Arrived() <-chan struct{} { return t.arrived }

// Indirect returns the connected nodes that were never reached without a tunnel, with the address from which each
// connected last.
func (t *Table) Indirect() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]string{}
	for name, e := range t.nodes {
		if !e.direct && len(e.sessions) > 0 {
			out[name] = e.connectedFrom
		}
	}
	return out
}

// Reached records that this server has reached a node without its tunnel.
func (t *Table) Reached(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.nodes[node]; e != nil {
		e.direct = true
	}
}

// RemoveDeleted removes the entries of deleted nodes that have no connection.
func (t *Table) RemoveDeleted(deleted func(node string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.nodes, func(name string, e *entry) bool { return len(e.sessions) == 0 && deleted(name) })
}

// Drain closes all connections, and new ones, until it is called with false. A node whose connection is closed connects
// to another server.
func (t *Table) Drain(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = on
	if !on {
		return
	}
	for _, e := range t.nodes {
		for _, s := range e.sessions {
			go func() { _ = s.Close() }() // it may take a moment; serve removes it
		}
	}
}

// SetReadiness sets the reason why clients should use another server that is ready, such as nodetunnel.NoLeader. It is
// empty when this server is ready. Nodes that are connected, or that connect later, receive it.
func (t *Table) SetReadiness(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unready = reason
	for _, e := range t.nodes {
		for _, s := range e.sessions {
			t.report(s)
		}
	}
}

// report sends a node the present reason, in a goroutine. The caller holds mu.
func (t *Table) report(s *nodetunnel.Session) {
	t.reports.Go(func() {
		err := s.ReportReadiness(func() string {
			t.mu.Lock()
			defer t.mu.Unlock()
			return t.unready
		})
		if err != nil {
			t.o.Logger.Debug("a node did not receive this server's readiness", "error", err)
		}
	})
}

// session returns the newest of a node's connections, or nil.
func (t *Table) session(node string) *nodetunnel.Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[node]
	if e == nil || len(e.sessions) == 0 {
		return nil
	}
	return e.sessions[len(e.sessions)-1]
}
