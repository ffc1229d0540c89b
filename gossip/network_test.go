// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// network carries packets and streams between members of one process, as long as it is not cut.
type network struct {
	mu    sync.Mutex
	hosts map[netip.AddrPort]*host
	cut   func(from, to netip.AddrPort) bool // nil: nothing is cut
	noUDP func(from, to netip.AddrPort) bool
}

func newNetwork() *network { return &network{hosts: map[netip.AddrPort]*host{}} }

// host is one machine's sockets on the network. It is both a net.PacketConn and Streams.
type host struct {
	net     *network
	address netip.AddrPort
	packets chan datagram // 1,024: what a socket's buffer holds; more is dropped, as by UDP
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

type datagram struct {
	data []byte
	from netip.AddrPort
}

func (n *network) host(address netip.AddrPort) *host {
	h := &host{net: n, address: address, packets: make(chan datagram, 1024), streams: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[address] = h
	return h
}

// split cuts both ways between those that f says and all others; nil heals.
func (n *network) split(f func(netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = nil
	if f != nil {
		n.cut = func(from, to netip.AddrPort) bool { return f(from) != f(to) }
	}
}

// find returns whom a sender reaches.
func (n *network) find(from, to netip.AddrPort, udp bool) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut != nil && n.cut(from, to) || udp && n.noUDP != nil && n.noUDP(from, to) {
		return nil
	}
	return n.hosts[to]
}

func (h *host) WriteTo(b []byte, to net.Addr) (int, error) {
	address := to.(*net.UDPAddr).AddrPort()
	if other := h.net.find(h.address, address, true); other != nil {
		select {
		case other.packets <- datagram{append([]byte(nil), b...), h.address}:
		default:
		}
	}
	return len(b), nil
}

func (h *host) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-h.packets:
		return copy(b, d.data), net.UDPAddrFromAddrPort(d.from), nil
	case <-h.closed:
		return 0, nil, net.ErrClosed
	}
}

func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.streams:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *host) Dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	other := h.net.find(h.address, to, false)
	if other == nil {
		<-ctx.Done() // as a machine that is not there
		return nil, ctx.Err()
	}
	a, b := net.Pipe()
	select {
	case other.streams <- b:
		return a, nil
	case <-other.closed:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *host) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *host) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(h.address) }
func (h *host) SetDeadline(time.Time) error      { return nil }
func (h *host) SetReadDeadline(time.Time) error  { return nil }
func (h *host) SetWriteDeadline(time.Time) error { return nil }
