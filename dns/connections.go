// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

const (
	// connectionsDirective names the plugin that bounds the connections of all server blocks. The cluster's block has
	// it.
	connectionsDirective = "coracle-connections"
	// maxPerClient is how many connections a pod may have, or the machine itself. Clients ask again by TCP what was too
	// long for UDP, and close the connection.
	maxPerClient = 100
)

// connections returns the directive with its arguments: the number of connections, and the networks from which they are
// accepted beside the machine's own.
func connections(o Options) string {
	return strings.Join(append([]string{connectionsDirective, strconv.Itoa(o.maxConnections)}, networks(o)...), " ")
}

// contextField is the path of the field with which Caddy makes an instance's servers. Caddy has no function that sets
// it.
var contextField = []string{"instance", "context"}

// setupConnections has Caddy make servers whose connections are bounded. It has to run after all other plugins' setup,
// which look for the context by its type.
func setupConnections(c *caddy.Controller) error {
	b, g := &bounding{}, &gate{}
	for c.Next() {
		args := c.RemainingArgs()
		if len(args) == 0 {
			return plugin.Error(connectionsDirective, c.ArgErr())
		}
		most, err := strconv.Atoi(args[0])
		if err != nil {
			return plugin.Error(connectionsDirective, err)
		}
		if err := g.admit(args[1:]); err != nil {
			return plugin.Error(connectionsDirective, err)
		}
		b.table = &connlimit.Table{Max: most, MaxPerSource: maxPerClient, FixedAddresses: true}
	}
	var err error
	if b.context, err = kubecompat.Field[caddy.Context](c, contextField); err != nil {
		return plugin.Error(connectionsDirective, err)
	}
	b.admits = func(remote net.Addr) bool {
		tcp, ok := remote.(*net.TCPAddr)
		return ok && g.admits(tcp.AddrPort().Addr().Unmap().WithZone(""))
	}
	b.Context, *b.context = *b.context, b
	return nil
}

// bounding is the context of an instance from the end of its plugins' setup until its servers are made.
type bounding struct {
	caddy.Context
	context *caddy.Context // the instance's field
	table   *connlimit.Table
	admits  func(remote net.Addr) bool
}

// MakeServers implements caddy.Context. It returns the instance to the context that plugins look for.
func (b *bounding) MakeServers() ([]caddy.Server, error) {
	*b.context = b.Context
	servers, err := b.Context.MakeServers()
	for i, s := range servers {
		graceful, ok := s.(caddy.GracefulServer)
		if !ok {
			return nil, fmt.Errorf("the connections of a %T cannot be bounded", s)
		}
		servers[i] = &boundedServer{graceful, b}
	}
	return servers, err
}

// boundedServer is a server of CoreDNS whose TCP connections are bounded. Connections from outside the cluster are
// closed at once, as the gate would refuse their queries.
type boundedServer struct {
	caddy.GracefulServer
	b *bounding
}

// Listen implements caddy.TCPServer.
func (s *boundedServer) Listen() (net.Listener, error) {
	l, err := s.GracefulServer.Listen()
	if err != nil {
		return nil, err
	}
	return s.WrapListener(l), nil
}

// WrapListener implements caddy.GracefulServer. A server of packets has no listener.
func (s *boundedServer) WrapListener(l net.Listener) net.Listener {
	if l == nil {
		return nil
	}
	p := connlimit.Keep("dns", l, s.b.table)
	return &boundedListener{p.Bounded(s.b.admits), p}
}

// boundedListener can be passed on to the next instance: Caddy does that with listeners that have File.
type boundedListener struct {
	*connlimit.Listener
	port *connlimit.Port
}

// File implements caddy.Listener.
func (l *boundedListener) File() (*os.File, error) { return l.port.File() }
