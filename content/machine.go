// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"

	"github.com/coracle-k8s/coracle/gossip"
)

// handshakeTimeout limits the TLS handshake through a node's connection to a server.
const handshakeTimeout = 2 * time.Second

// Machine is this machine's part in sharing content: what it serves to others, and what its pulls get from them.
type Machine struct {
	o        MachineOptions
	config   *tls.Config
	server   *Server
	client   *Client
	source   atomic.Pointer[Source]
	Counters Counters
}

// MachineOptions configure a Machine.
type MachineOptions struct {
	// Node is the name of this machine's node.
	Node string
	// Members returns the members of the gossip.
	Members func() []gossip.Info
	// Trust has the certificates by which machines recognise one another.
	Trust gossip.Trust
	// Rate limits what is sent to all machines together, in bytes per second; 0 is no limit.
	Rate int64
	// Nodes are the nodes that keep a connection to this server. It is nil on an agent.
	Nodes  Nodes
	Logger *slog.Logger
}

// Nodes are the nodes that keep a connection to a server.
type Nodes interface {
	// Sessions returns their names, each with what identifies its present connection.
	Sessions() map[string]any
	// DialNode connects to an address of a node through its connection.
	DialNode(ctx context.Context, node, address string) (net.Conn, error)
}

// NewMachine returns a Machine. Run has to be called.
func NewMachine(o MachineOptions) *Machine {
	m := &Machine{o: o}
	o.Trust.Protocol = ALPN
	m.o.Trust, m.config = o.Trust, o.Trust.Config()
	s := ServerOptions{Source: m.ownSource, Counters: &m.Counters, Refuses: m.refuses, Rate: o.Rate}
	if o.Nodes != nil {
		s.Sessions, s.Dial, s.Own = o.Nodes.Sessions, m.dialThrough, o.Node
	}
	m.server = NewServer(s)
	m.client = NewClient(ClientOptions{Node: o.Node, Servers: m.servers, Dial: m.dial, Counters: &m.Counters, Logger: o.Logger})
	return m
}

// SetSource sets the content that this machine serves; nil for none.
func (m *Machine) SetSource(s Source) {
	if s == nil {
		m.source.Store(nil)
		return
	}
	m.source.Store(&s)
}

func (m *Machine) ownSource() Source {
	if s := m.source.Load(); s != nil {
		return *s
	}
	return nil
}

// SetNames sets what answers other machines that ask this server for names of images; nil for nothing.
func (m *Machine) SetNames(names http.HandlerFunc) {
	if names == nil {
		m.server.names.Store(nil)
		return
	}
	m.server.names.Store(&names)
}

// Servers returns the names of the live servers other than this machine.
func (m *Machine) Servers() []string {
	return slices.DeleteFunc(m.servers(), func(name string) bool { return name == m.o.Node })
}

// Get sends a GET request to a server; see Client.Get.
func (m *Machine) Get(ctx context.Context, server, path string) (*http.Response, error) {
	return m.client.Get(ctx, server, path)
}

// IsServer reports whether this machine is a server.
func (m *Machine) IsServer() bool { return m.o.Nodes != nil }

// Fetch fills an empty writer from other machines; see Client.Fetch.
func (m *Machine) Fetch(ctx context.Context, d digest.Digest, size int64, to content.Writer) error {
	return m.client.Fetch(ctx, d, size, to)
}

// FromOutside counts a blob that came from a registry.
func (m *Machine) FromOutside(size int64) { m.Counters.Outside.Add(size) }

// Run serves content at a route of the machine's port, on which TLS has not begun, until ctx is done.
func (m *Machine) Run(ctx context.Context, route net.Listener) error {
	streams := gossip.NewStreams(route, m.o.Trust)
	defer m.client.Close()
	return errors.Join(m.server.Run(ctx, listener{streams, route.Addr()}), streams.Close())
}

// listener is a net.Listener of authenticated connections.
type listener struct {
	gossip.Streams
	addr net.Addr
}

func (l listener) Addr() net.Addr { return l.addr }

// refuses returns why a machine is not served, or nil. A server has the list of revoked nodes, which may have become
// longer since the handshake. An agent has none: it serves live members of the gossip, and a revoked node, which has
// not the gossip's new key, is none. A node that cannot be a member here gets content through a server.
func (m *Machine) refuses(c *tls.ConnectionState) error {
	switch {
	case isServer(c):
		return nil
	case nodeOf(c) == "":
		return errors.New("content: the certificate is neither a server's nor a node's")
	case m.o.Trust.Refuses != nil:
		return m.o.Trust.Refuses(c.PeerCertificates[0])
	case m.o.Nodes != nil:
		return nil
	}
	_, err := m.address(nodeOf(c))
	return err
}

// servers returns the names of the live servers.
func (m *Machine) servers() (names []string) {
	for _, i := range m.o.Members() {
		if i.Role == gossip.RoleServer && i.State == gossip.Alive {
			names = append(names, i.Name)
		}
	}
	return names
}

// address returns where a live machine is reached.
func (m *Machine) address(node string) (string, error) {
	for _, i := range m.o.Members() {
		if i.Name == node && i.State == gossip.Alive {
			return i.Address.String(), nil
		}
	}
	return "", fmt.Errorf("content: %s is no live machine of the cluster", node)
}

func (m *Machine) dial(ctx context.Context, node string) (net.Conn, error) {
	address, err := m.address(node)
	if err != nil {
		return nil, err
	}
	c, err := (&tls.Dialer{Config: m.config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return m.reached(c.(*tls.Conn), node)
}

// reached returns a connection to a machine, unless another one answers in its place.
func (m *Machine) reached(c *tls.Conn, node string) (net.Conn, error) {
	state := c.ConnectionState()
	if err := m.standsFor(&state, node); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// standsFor returns an error if a server answers for a machine that is none: agents of before there was this protocol
// pass such connections on to a server.
func (m *Machine) standsFor(c *tls.ConnectionState, node string) error {
	if isServer(c) && !slices.Contains(m.servers(), node) {
		return fmt.Errorf("content: a server answers for %s, which has an older version", node)
	}
	return nil
}

// dialThrough connects to a node through its connection to this server.
func (m *Machine) dialThrough(ctx context.Context, node string) (net.Conn, error) {
	address, err := m.address(node)
	if err != nil {
		return nil, err
	}
	raw, err := m.o.Nodes.DialNode(ctx, node, address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := tls.Client(raw, m.config)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return m.reached(c, node)
}
