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

// That an address accepts connections proves nothing: another program may listen there, another cluster, or the kernel
// of a machine whose server is blocked. A server's certificate in a TLS handshake is a proof. A handshake costs both
// ends about a millisecond and 4 kB, so there is none every two seconds: the node's own connection to each server
// (agent/tunnels) proves once a second that the server is still the one that presented its certificate there. The
// balancer makes a handshake only without such a reply: before the first connection, and when the server has become
// unresponsive.
const (
	// heardFor is how long a server counts as responsive after a reply. Replies arrive once a second, a moment after
	// the node's check (internal/timers), and the second check after the last reply has to find the server
	// unresponsive. With two whole seconds only the third check would.
	heardFor = 1800 * time.Millisecond
	// farther is by how much longer than usual the next reply may take from a server whose replies usually arrive less
	// often than once a second, as over a line with a round trip longer than that. Only times between two replies below
	// farthest count for what is usual.
	farther, farthest = 700 * time.Millisecond, 3 * time.Second
	// sureFor is how long after a proof new connections are opened without another handshake.
	sureFor = 5 * time.Second
	// answersNow is how long a reply proves that this machine is neither slow nor cut off: replies arrive once a
	// second.
	answersNow = 1200 * time.Millisecond
)

// proof is what is known of an address that has presented a server's certificate.
type proof struct {
	// at is when it last presented it, or replied over a connection on which it had.
	at time.Time
	// itself means that the certificate names the address: no agent has forwarded the connection.
	itself bool
	// doubted means that it has closed a connection since without having sent anything.
	doubted bool
	// discounted is how much of the time since at does not count as unresponsive: this machine was late.
	discounted time.Duration
	// usual is the average time between two replies over the node's own connection. The latest ones count most.
	usual time.Duration
}

// proving is a running handshake. Other callers that need its result wait for it: two agents that took one another for
// servers would otherwise start handshakes with one another without end.
type proving struct {
	cancel    context.CancelFunc
	connected atomic.Bool   // the machine's kernel has replied
	done      chan struct{} // closed at the end of the handshake
	err       error         // set before done is closed
}

// Replied records that a server has replied over a connection of the node's on which it had presented its certificate.
// itself means that the certificate names the address.
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

// Ended records that a server has ended the node's connection. A server whose disk is stalled does so, and would delay
// all requests. If another server replies, the connections to this one are closed at once, so that clients use the
// other one.
func (b *Balancer) Ended(server string) {
	if other := b.otherReady(server); other != "" {
		b.o.Logger.Info("a server has drained this node's connections; moving them to another server", "server", server, "other", other)
		b.drop(server)
	}
}

// doubt records that a server has closed a connection without having sent anything, as one does whose API server is
// stopping or has not started. It has to present its certificate before the next connection is opened. It still counts
// as responsive, and keeps its connections: a program on this machine that does not speak TLS causes this too.
func (b *Balancer) doubt(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.proved[server]; ok {
		p.doubted = true
		b.proved[server] = p
	}
}

// recordProof records a proof with the current time. The caller holds mu.
func (b *Balancer) recordProof(server string, p proof) {
	if slices.Contains(b.servers, server) {
		p.at, p.discounted = b.now(), 0
		b.proved[server] = p
	}
}

// lastContact reports whether a server replies over the node's own connection, or has just presented its certificate,
// and when it last did.
func (b *Balancer) lastContact(server string) (yes bool, last time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.proved[server]
	return b.responsive(server, max(heardFor, p.usual+farther)+p.discounted), p.at
}

// responsive reports whether the server's last proof is younger than within. The caller holds mu.
func (b *Balancer) responsive(server string, within time.Duration) bool {
	p, ok := b.proved[server]
	return ok && b.now().Sub(p.at) < within
}

// otherReady returns another server than the given one that is ready and has just replied, or "". When there is one,
// connections to an unresponsive server are closed at once, without a second probe: that costs its clients a new
// connection, and waiting would cost them their requests.
func (b *Balancer) otherReady(but string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.servers {
		if s != but && b.ready(s) && b.proved[s].itself && b.responsive(s, answersNow) {
			return s
		}
	}
	return ""
}

// leftOut reports whether an address is excluded and has not presented a certificate for itself. The caller holds mu.
func (b *Balancer) leftOut(server string) bool { return b.excluded[server] && !b.proved[server].itself }

// provedLast returns the addresses that have presented a certificate for themselves, the latest first, no more than
// mostProved. The caller holds mu.
func (b *Balancer) provedLast() []string {
	out := slices.DeleteFunc(slices.Sorted(maps.Keys(b.proved)), func(s string) bool { return !b.proved[s].itself })
	slices.SortStableFunc(out, func(x, y string) int { return b.proved[y].at.Compare(b.proved[x].at) })
	return out[:min(len(out), mostProved)]
}

// removeAddresses removes what is known of addresses. The caller holds mu.
func (b *Balancer) removeAddresses(gone func(string) bool) {
	maps.DeleteFunc(b.named, func(s string, _ bool) bool { return gone(s) })
	maps.DeleteFunc(b.proved, func(s string, _ proof) bool { return gone(s) })
	maps.DeleteFunc(b.unready, func(s string, _ unready) bool { return gone(s) })
}

// candidates returns all addresses in the order in which they are tried: responsive ones, those that are ready first,
// then those that presented a certificate for themselves before, then those that were only named, and last the excluded
// ones. So addresses that one source names in large numbers are tried late.
func (b *Balancer) candidates() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	rank := func(s string) int {
		switch {
		case b.responsive(s, sureFor) && b.ready(s):
			return 0
		case b.responsive(s, sureFor):
			return 1
		case b.proved[s].itself:
			return 2
		case b.leftOut(s):
			return 4
		}
		return 3
	}
	out := slices.Clone(b.servers)
	slices.SortStableFunc(out, func(x, y string) int { return cmp.Compare(rank(x), rank(y)) })
	return out
}

// ensureVerified returns an error if a server has not proved, now or a moment ago, that it belongs to the cluster.
func (b *Balancer) ensureVerified(ctx context.Context, server string) error {
	b.mu.Lock()
	known := b.responsive(server, sureFor) && !b.proved[server].doubted
	b.mu.Unlock()
	if known {
		return nil
	}
	return b.prove(ctx, server)
}

// prove waits until a server has presented its certificate. It waits no longer than dialTimeout, while the handshake
// may continue.
func (b *Balancer) prove(ctx context.Context, server string) error {
	notInTime := func(p *proving) error {
		late := error(&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded})
		if p != nil && p.connected.Load() {
			late = errors.New("it accepts connections, but has presented no certificate yet")
		}
		return fmt.Errorf("%s could not be verified as a server of this cluster: %w", server, late)
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

// handshakeWith returns the running handshake with a server, or begins one. ctx does not end it.
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

// endProving ends all handshakes, and returns when none is running.
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
		return tls.ConnectionState{}, fmt.Errorf("%s could not be verified as a server of this cluster: %w", server, err)
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
	defer raw.Close() // nothing has to be sent
	connected.Store(true)
	config.ServerName, _, _ = net.SplitHostPort(server) // server was dialed, and so is host:port
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	return c.ConnectionState(), nil
}
