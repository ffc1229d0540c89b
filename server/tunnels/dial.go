// SPDX-License-Identifier: Apache-2.0

package tunnels

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

// directTimeout limits a connection attempt without a tunnel, as upstream's own dialer does.
const directTimeout = 30 * time.Second

// Owner returns the name of the node that has an address, or whose pod has it. It returns an empty string if no node
// does or this is not certain.
type Owner func(netip.Addr) string

// Follow sets the Owner. Before that no connection uses a tunnel.
func (t *Table) Follow(o Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owner = o
}

// forUser is the key of a context whose connections are a user's.
type forUser struct{}

// ForUser returns a context for a request that keeps its connection to a node as long as its user wants. DialContext
// leaves other connections a part of the node's streams.
func ForUser(ctx context.Context) context.Context { return context.WithValue(ctx, forUser{}, true) }

// DialContext connects to an address like net.Dialer's. It uses the tunnel of the node that owns the address, if that
// node is connected to this server, and connects directly if not. If the node refuses the address, or has too many
// streams (nodetunnel.ErrTooMany), it is not tried directly.
func (t *Table) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if to, err := netip.ParseAddrPort(address); err == nil {
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		if s := t.sessionOf(to.Addr()); s != nil {
			dial := s.Dial
			if ctx.Value(forUser{}) != nil {
				dial = s.DialForUser
			}
			c, err := dial(ctx, to)
			if err == nil || errors.Is(err, nodetunnel.ErrRefused) || errors.Is(err, nodetunnel.ErrTooMany) || ctx.Err() != nil {
				return c, err
			}
		}
	}
	return (&net.Dialer{Timeout: directTimeout}).DialContext(ctx, network, address)
}

// ErrNotConnected says that a node has no connection to this server.
var ErrNotConnected = errors.New("the node has no connection to this server")

// Open opens a stream to an address that a node serves only in its tunnel (localvolume.Target).
func (t *Table) Open(ctx context.Context, node string, to netip.AddrPort) (net.Conn, error) {
	s := t.session(node)
	if s == nil {
		return nil, ErrNotConnected
	}
	return s.Dial(ctx, to)
}

// Sessions returns the connected nodes by name, each with its newest connection.
func (t *Table) Sessions() map[string]any {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string]any, len(t.nodes))
	for name, e := range t.nodes {
		if n := len(e.sessions); n > 0 {
			out[name] = e.sessions[n-1]
		}
	}
	return out
}

// DialNode connects to an address of a node through the node's connection.
func (t *Table) DialNode(ctx context.Context, node, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("the address of %s: %w", node, err)
	}
	return t.Open(ctx, node, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
}

// sessionOf returns the connection of the node that owns an address, or nil.
func (t *Table) sessionOf(a netip.Addr) *nodetunnel.Session {
	t.mu.Lock()
	owner := t.owner
	t.mu.Unlock()
	if owner == nil {
		return nil
	}
	if node := owner(a); node != "" {
		return t.session(node)
	}
	return nil
}

// OwnerByNodes returns an Owner that uses the Node objects. A node reports its own addresses, and could report another
// node's: an address that two nodes report has no owner. Of several pod networks that contain an address the smallest
// is used.
func OwnerByNodes(nodes corelisters.NodeLister) Owner {
	return func(a netip.Addr) string {
		all, err := nodes.List(labels.Everything())
		if err != nil {
			return ""
		}
		own, pods, bits := "", "", -1
		for _, n := range all {
			if hasAddress(n, a) {
				if own != "" {
					return ""
				}
				own = n.Name
			}
			for _, c := range clusterconfig.PodCIDRs(n) {
				switch {
				case !c.Contains(a) || c.Bits() < bits:
				case c.Bits() == bits && pods != n.Name:
					pods = ""
				default:
					pods, bits = n.Name, c.Bits()
				}
			}
		}
		if own != "" {
			return own
		}
		return pods
	}
}

func hasAddress(n *corev1.Node, a netip.Addr) bool {
	return slices.Contains(Addresses(n), a)
}

// Addresses returns the addresses at which a node reports that it can be reached.
func Addresses(n *corev1.Node) []netip.Addr {
	return clusterconfig.NodeAddresses(n, corev1.NodeInternalIP, corev1.NodeExternalIP)
}
