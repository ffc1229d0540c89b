// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// maxDatagram is the largest UDP payload.
const maxDatagram = 64 << 10

// transport transports memberlist's packets and streams. Both go to the same port number of a member: packets by UDP,
// streams by TCP.
type transport struct {
	address netip.AddrPort
	packets net.PacketConn
	streams Streams
	// search handles datagrams of machines that search for servers. It returns a function that replies, or nil.
	search    func(b []byte, from net.Addr) func(closed <-chan struct{})
	onFailure func(error)
	// onDial is called before a stream to a member is opened.
	onDial func(to memberlist.Address, timeout time.Duration)

	packetCh chan *memberlist.Packet
	streamCh chan net.Conn
	closed   chan struct{}
	once     sync.Once
	running  sync.WaitGroup
	traffic  traffic
}

// traffic counts sent and received packets and bytes, without the headers of UDP and IP.
type traffic struct{ packetsOut, packetsIn, bytesOut, bytesIn, dialed atomic.Int64 }

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// newTransport begins to receive. failed is called when the sockets stop working unexpectedly.
func newTransport(o *Options, search func([]byte, net.Addr) func(<-chan struct{}), failed func(error),
	dialed func(memberlist.Address, time.Duration)) *transport {
	t := &transport{
		address: o.Address, packets: o.Packets, streams: o.Streams, search: search, onFailure: failed, onDial: dialed,
		// Unbuffered: memberlist has queues of its own.
		packetCh: make(chan *memberlist.Packet), streamCh: make(chan net.Conn), closed: make(chan struct{}),
	}
	t.running.Go(t.receive)
	t.running.Go(t.accept)
	return t
}

// FinalAdvertiseAddr returns the address at which other members reach this one.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.address.Addr().AsSlice(), int(t.address.Port()), nil
}

// WriteTo sends a packet.
func (t *transport) WriteTo(b []byte, address string) (time.Time, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip: the address %q: %w", address, err)
	}
	t.traffic.packetsOut.Add(1)
	t.traffic.bytesOut.Add(int64(len(b)))
	_, err = t.packets.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress calls WriteTo: members are distinguished by their addresses.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packetCh }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streamCh }

// DialTimeout opens a stream.
func (t *transport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout) // memberlist gives none
	defer cancel()
	t.traffic.dialed.Add(1)
	return t.streams.Dial(ctx, address)
}

// DialAddressTimeout calls DialTimeout.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	t.onDial(a, timeout)
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown closes the sockets and returns when nothing is received any more.
func (t *transport) Shutdown() error {
	var err error
	t.once.Do(func() {
		close(t.closed)
		err = errors.Join(t.packets.Close(), t.streams.Close())
	})
	t.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *transport) receive() {
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := t.packets.ReadFrom(buffer)
		switch {
		case err == nil && isSearch(buffer[:n]):
			if answer := t.search(buffer[:n], from); answer != nil {
				t.running.Go(func() { answer(t.closed) })
			}
		case err == nil && n > 0:
			t.traffic.packetsIn.Add(1)
			t.traffic.bytesIn.Add(int64(n))
			packet := &memberlist.Packet{Buf: append([]byte(nil), buffer[:n]...), From: from, Timestamp: time.Now()}
			select {
			case t.packetCh <- packet:
			case <-t.closed:
				return
			}
		case err != nil && t.isClosed(err):
			return
		}
	}
}

func (t *transport) accept() {
	for {
		c, err := t.streams.Accept()
		if err != nil {
			if t.isClosed(err) {
				return
			}
			continue
		}
		select {
		case t.streamCh <- c:
		case <-t.closed:
			_ = c.Close() // no reader is left
			return
		}
	}
}

// isClosed reports whether a socket was closed. Other errors concern one packet: an ICMP error for one that was sent.
func (t *transport) isClosed(err error) bool {
	select {
	case <-t.closed:
		return true
	default:
	}
	if errors.Is(err, net.ErrClosed) {
		t.onFailure(err)
		return true
	}
	return false
}
