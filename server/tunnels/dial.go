// SPDX-License-Identifier: Apache-2.0

package tunnels

import (
	"context"
	"errors"
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

// directTimeout bounds connecting without a tunnel, as upstream's own dialer does.
const directTimeout = 30 * time.Second

// Owner is the name of the node that an address belongs to, as its own or as one of its pods'; "" where that is no
// node's, or is not certain.
type Owner func(netip.Addr) string

// Follow says whose an address is. Until then nothing is dialled through a tunnel.
func (t *Table) Follow(o Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.owner = o
}

// DialContext connects to an address as net.Dialer's does: through the tunnel of the node that the address belongs to,
// if that has one to this server, and directly if not. A node that does not open the stream has the last word: what it
// refuses is not tried past it.
func (t *Table) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if to, err := netip.ParseAddrPort(address); err == nil {
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		if s := t.through(to.Addr()); s != nil {
			c, err := s.Dial(ctx, to)
			if err == nil || errors.Is(err, nodetunnel.ErrRefused) || ctx.Err() != nil {
				return c, err
			}
		}
	}
	return (&net.Dialer{Timeout: directTimeout}).DialContext(ctx, network, address)
}

// ErrNotConnected is a node that has no connection to this server.
var ErrNotConnected = errors.New("the node has no connection to this server")

// Open opens a stream to an address that a node serves in its tunnel alone (localvolume.Target).
func (t *Table) Open(ctx context.Context, node string, to netip.AddrPort) (net.Conn, error) {
	s := t.session(node)
	if s == nil {
		return nil, ErrNotConnected
	}
	return s.Dial(ctx, to)
}

// through is the connection that leads to an address, or nil.
func (t *Table) through(a netip.Addr) *nodetunnel.Session {
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

// OwnerByNodes finds an address's node among the Node objects. A node reports its own addresses, and could report
// another one's: where two claim the same, neither is believed. Of networks of pods the smallest counts.
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
			for _, c := range podNetworks(n) {
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

// Addresses are those at which a node says that it is reached.
func Addresses(n *corev1.Node) []netip.Addr {
	return clusterconfig.NodeAddresses(n, corev1.NodeInternalIP, corev1.NodeExternalIP)
}

// podNetworks are those that a node's pods get their addresses from.
func podNetworks(n *corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			out = append(out, p)
		}
	}
	return out
}
