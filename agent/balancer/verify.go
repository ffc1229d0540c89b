// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
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
	// dialTimeout limits how long to wait until a server accepts a connection or has presented its certificate.
	dialTimeout = 2 * time.Second
	// handshakeTimeout limits a handshake that no caller waits for any more. The next caller then finds its result.
	// Over a line on which a packet needs a second, no server could ever be verified otherwise.
	handshakeTimeout = 6 * time.Second
)

// verifier has addresses prove by a handshake that they are servers of the cluster.
type verifier struct {
	list  *serverList
	conns *connTable

	mu         sync.Mutex
	handshakes map[string]*runningHandshake // the running handshakes
	closed     bool                         // no new handshake begins
}

// runningHandshake is a running handshake. Other callers that need its result wait for it: two agents that took one
// another for servers would otherwise start handshakes with one another without end.
type runningHandshake struct {
	cancel    context.CancelFunc
	connected atomic.Bool   // the machine's kernel has replied
	done      chan struct{} // closed at the end of the handshake
	err       error         // set before done is closed
}

// ensureVerified returns an error if a server has not proved, now or a moment ago, that it belongs to the cluster.
func (v *verifier) ensureVerified(ctx context.Context, server string) error {
	if v.list.recentlyVerified(server) {
		return nil
	}
	return v.prove(ctx, server)
}

// prove waits until a server has presented its certificate. It waits no longer than dialTimeout, while the handshake
// may continue.
func (v *verifier) prove(ctx context.Context, server string) error {
	notInTime := func(p *runningHandshake) error {
		late := error(&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded})
		if p != nil && p.connected.Load() {
			late = errors.New("it accepts connections, but has presented no certificate yet")
		}
		return fmt.Errorf("%s could not be verified as a server of this cluster: %w", server, late)
	}
	if ctx.Err() != nil {
		return notInTime(nil)
	}
	p, err := v.handshakeWith(ctx, server)
	if err != nil {
		return err
	}
	timeout := time.NewTimer(v.conns.timeoutOr(dialTimeout))
	defer timeout.Stop()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	case <-timeout.C:
		return notInTime(p)
	}
}

// handshakeWith returns the running handshake with a server, or begins one. ctx does not end it.
func (v *verifier) handshakeWith(ctx context.Context, server string) (*runningHandshake, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p := v.handshakes[server]; p != nil {
		return p, nil
	}
	if v.closed {
		return nil, net.ErrClosed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.conns.timeoutOr(handshakeTimeout))
	p := &runningHandshake{cancel: cancel, done: make(chan struct{})}
	v.handshakes[server] = p
	go func() { // Run waits for it
		defer cancel()
		state, err := v.handshake(ctx, server, &p.connected)
		if p.err = err; err == nil {
			v.list.noteCertificate(server, protocol.NamesAddress(state, server))
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.handshakes, server)
		close(p.done)
	}()
	return p, nil
}

// endHandshakes ends all handshakes, and returns when none is running.
func (v *verifier) endHandshakes() {
	v.mu.Lock()
	v.closed = true
	left := slices.Collect(maps.Values(v.handshakes))
	v.mu.Unlock()
	for _, p := range left {
		p.cancel()
		<-p.done
	}
}

// handshake connects to the API server at an address.
func (v *verifier) handshake(ctx context.Context, server string, connected *atomic.Bool) (tls.ConnectionState, error) {
	fail := func(err error) (tls.ConnectionState, error) {
		return tls.ConnectionState{}, fmt.Errorf("%s could not be verified as a server of this cluster: %w", server, err)
	}
	config, err := protocol.ServerTLS(v.list.o.ServerCAFile, "", nil)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	raw, err := v.conns.connect(ctx, server)
	if err != nil {
		return fail(err)
	}
	defer v.conns.removeEnd(pairOfOpened(raw))
	defer raw.Close() // nothing has to be sent
	connected.Store(true)
	config.ServerName, _, _ = net.SplitHostPort(server) // server was dialed, and so is host:port
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	return c.ConnectionState(), nil
}
