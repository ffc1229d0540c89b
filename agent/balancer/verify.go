// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/joining/protocol"
)

// That an address accepts connections says nothing: another program may be there, another cluster, or the kernel of a
// machine whose server is blocked. What says something is a server's certificate in a TLS handshake. One costs both
// ends about a millisecond and 4 kB, so there is none every two seconds: the node's own connection to each server
// (agent/tunnels) proves once a second that the server still is what it was when it showed its certificate there. A
// handshake of our own is made only where that is not heard: before the first connection, and when the server has
// fallen silent.
const (
	// heardFor is for how long a server counts as answering after it has. It does so once a second, a moment after the
	// node has looked (internal/timers), and the second look after an answer has to find it silent: with two whole
	// seconds that would be the third.
	heardFor = 1800 * time.Millisecond
	// farther is by how much longer than usual the next answer may take of a server whose answers usually come less
	// often than once a second: a line on which a packet and the one that answers it need more than that. farthest is
	// the longest time between two answers that counts for what is usual.
	farther, farthest = 700 * time.Millisecond, 3 * time.Second
	// sureFor is for how long new connections are opened without another handshake.
	sureFor = 5 * time.Second
	// answersNow is for how long an answer shows that this machine is neither slow nor cut off: they come once a
	// second.
	answersNow = 1200 * time.Millisecond
)

// proof is what is known of an address that has shown the certificate of a server.
type proof struct {
	// at is when it last did, or answered over a connection on which it had.
	at time.Time
	// itself says that the certificate names the address: no agent has passed the connection on.
	itself bool
	// doubted says that it has closed a connection since without a word.
	doubted bool
	// discounted is how much of the time since then counts as silence of no server: this machine was late.
	discounted time.Duration
	// usual is the time between two answers over the node's own connection, on average, the latest counting most.
	usual time.Duration
}

// proving is a handshake that goes on. Others that want to know the same wait for it: two agents that took one another
// for servers would otherwise ask one another without end.
type proving struct {
	cancel    context.CancelFunc
	connected atomic.Bool   // the machine's kernel has answered
	done      chan struct{} // closed at its end
	err       error         // set before
}

// Replied says that a server has replied over a connection of the node's, on which it had shown its certificate.
// itself says that this names the address.
func (b *Balancer) Replied(server string, itself bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.proved[server]
	if gap := b.now().Sub(p.at); gap < farthest {
		p.usual += (gap - cmp.Or(p.usual, gap)) / 8
		p.usual = cmp.Or(p.usual, gap)
	}
	p.itself = itself
	b.recordProof(server, p)
}

// Ended says that a server has ended the node's connection. A server whose disk is stalled does so, and would keep all
// requests waiting: if another one answers, what went to this one goes there at once.
func (b *Balancer) Ended(server string) {
	if other := b.otherResponsive(server); other != "" {
		b.o.Logger.Info("a server has drained the connections of this node; they go to another one now", "server", server, "other", other)
		b.drop(server)
	}
}

// doubt says that a server has closed a connection without a word, as one does whose API server stops or has not begun:
// it has to show itself before the next connection is opened. It counts as heard nevertheless, and keeps the
// connections that it has: a program on this machine that sends what is no TLS brings this about too.
func (b *Balancer) doubt(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.proved[server]; ok {
		p.doubted = true
		b.proved[server] = p
	}
}

// recordProof keeps what has been shown just now. mu is held.
func (b *Balancer) recordProof(server string, p proof) {
	if slices.Contains(b.servers, server) {
		p.at, p.discounted = b.now(), 0
		b.proved[server] = p
	}
}

// heard says whether a server answers over the node's own connection, or has just shown its certificate, and when it
// last did.
func (b *Balancer) heard(server string) (yes bool, last time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.proved[server]
	return b.responsive(server, max(heardFor, p.usual+farther)+p.discounted), p.at
}

// responsive is called with mu held.
func (b *Balancer) responsive(server string, within time.Duration) bool {
	p, ok := b.proved[server]
	return ok && b.now().Sub(p.at) < within
}

// otherResponsive is a server that has just answered, and not the one that is given; "" if there is none. A server that
// is silent while another one answers is left at once, without asking it twice: that costs its clients a new
// connection, and waiting costs them their requests.
func (b *Balancer) otherResponsive(but string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.servers {
		if s != but && b.proved[s].itself && b.responsive(s, answersNow) {
			return s
		}
	}
	return ""
}

// leftOut says whether an address is one of those that are said to be none of a server. mu is held.
func (b *Balancer) leftOut(server string) bool { return b.excluded[server] && !b.proved[server].itself }

// provedLast are the addresses that have proved to be servers' themselves, the latest first, no more than mostProved.
// mu is held.
func (b *Balancer) provedLast() []string {
	out := slices.DeleteFunc(slices.Sorted(maps.Keys(b.proved)), func(s string) bool { return !b.proved[s].itself })
	slices.SortStableFunc(out, func(x, y string) int { return b.proved[y].at.Compare(b.proved[x].at) })
	return out[:min(len(out), mostProved)]
}

// removeAddresses drops what is known of addresses. mu is held.
func (b *Balancer) removeAddresses(gone func(string) bool) {
	maps.DeleteFunc(b.named, func(s string, _ bool) bool { return gone(s) })
	maps.DeleteFunc(b.proved, func(s string, _ proof) bool { return gone(s) })
}

// candidates are all addresses in the order in which they are tried: those that answer, then those that once were a
// server's, then what was only named, and at last what is said to be none. A source that names many has them tried
// last.
func (b *Balancer) candidates() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	rank := func(s string) int {
		switch {
		case b.responsive(s, sureFor):
			return 0
		case b.proved[s].itself:
			return 1
		case b.leftOut(s):
			return 3
		}
		return 2
	}
	out := slices.Clone(b.servers)
	slices.SortStableFunc(out, func(x, y string) int { return cmp.Compare(rank(x), rank(y)) })
	return out
}

// ensureProven returns an error if a server does not show that it is one of the cluster's, now or a moment ago.
func (b *Balancer) ensureProven(ctx context.Context, server string) error {
	b.mu.Lock()
	known := b.responsive(server, sureFor) && !b.proved[server].doubted
	b.mu.Unlock()
	if known {
		return nil
	}
	return b.prove(ctx, server)
}

// prove has a server show its certificate. It waits for no longer than dialTimeout; the handshake may go on.
func (b *Balancer) prove(ctx context.Context, server string) error {
	notInTime := func(p *proving) error {
		late := error(&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded})
		if p != nil && p.connected.Load() {
			late = errors.New("it accepts connections and has shown no certificate yet")
		}
		return fmt.Errorf("%s does not show that it is a server of this cluster: %w", server, late)
	}
	if ctx.Err() != nil {
		return notInTime(nil)
	}
	p, err := b.handshakeWith(ctx, server)
	if err != nil {
		return err
	}
	patience := time.NewTimer(b.within(dialTimeout))
	defer patience.Stop()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	case <-patience.C:
		return notInTime(p)
	}
}

// handshakeWith returns the handshake with a server that goes on, or begins one, which ctx does not end.
func (b *Balancer) handshakeWith(ctx context.Context, server string) (*proving, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.proving[server]; p != nil {
		return p, nil
	}
	if b.ended {
		return nil, net.ErrClosed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.within(handshakeTimeout))
	p := &proving{cancel: cancel, done: make(chan struct{})}
	b.proving[server] = p
	go func() { // Run waits for it
		defer cancel()
		state, err := b.handshake(ctx, server, &p.connected)
		b.mu.Lock()
		defer b.mu.Unlock()
		if p.err = err; err == nil {
			b.recordProof(server, proof{itself: protocol.NamesAddress(state, server), usual: b.proved[server].usual})
		}
		delete(b.proving, server)
		close(p.done)
	}()
	return p, nil
}

// endProving ends all handshakes, and returns when none is left.
func (b *Balancer) endProving() {
	b.mu.Lock()
	b.ended = true
	left := slices.Collect(maps.Values(b.proving))
	b.mu.Unlock()
	for _, p := range left {
		p.cancel()
		<-p.done
	}
}

// handshake connects to the API server at an address.
func (b *Balancer) handshake(ctx context.Context, server string, connected *atomic.Bool) (tls.ConnectionState, error) {
	fail := func(err error) (tls.ConnectionState, error) {
		return tls.ConnectionState{}, fmt.Errorf("%s does not show that it is a server of this cluster: %w", server, err)
	}
	config, err := protocol.ServerTLS(b.o.ServerCAFile, "", nil)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	raw, err := b.connect(ctx, server)
	if err != nil {
		return fail(err)
	}
	defer b.leave(opened(raw))
	defer raw.Close() // nothing was to be said
	connected.Store(true)
	config.ServerName, _, _ = net.SplitHostPort(server) // it was dialled, and so is host:port
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	return c.ConnectionState(), nil
}
