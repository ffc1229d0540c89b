// SPDX-License-Identifier: Apache-2.0

package nodetunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/coracle-k8s/coracle/internal/relay"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Node is the end of a node.
type Node struct {
	// Allowed says which addresses are the node's own. A stream to another one is refused.
	Allowed func(netip.AddrPort) bool
	// Dial connects to such an address; nil means TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Answered, when set, is called each time that the server has answered. It must not block.
	Answered func()

	// Until is how long it is until the next moment of a period; nil means timers.Until. Nodes that share a process, as
	// no real ones do, have to have moments of their own.
	Until func(period time.Duration) time.Duration

	// pingEvery and silence are PingEvery and writeTimeout; tests wait for less.
	pingEvery, silence time.Duration
}

// Serve serves a connection to a server until ctx is done or the connection ends, and returns when all of its streams
// have. The connection is closed then. The error is why it ended.
func (n Node) Serve(ctx context.Context, c net.Conn) error {
	if n.Dial == nil {
		n.Dial = (&net.Dialer{Timeout: openTimeout}).DialContext
	}
	o := config(maxStreams)
	o.ConnectionWriteTimeout = cmp.Or(n.silence, writeTimeout)
	s, err := yamux.Server(c, o)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	running.Go(func() { cancel(n.ping(ctx, s)) })
	free := make(chan struct{}, maxStreams)
	for {
		stream, err := s.AcceptStream()
		if err != nil {
			_ = s.Close()
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return fmt.Errorf("the server has closed the connection: %w", err)
		}
		select {
		case free <- struct{}{}:
			running.Go(func() {
				defer func() { <-free }()
				n.serve(ctx, stream)
			})
		default:
			_ = stream.Close()
		}
	}
}

// ping says again and again that the node lives. Its error is that the server did not answer.
func (n Node) ping(ctx context.Context, s *yamux.Session) error {
	every, until := cmp.Or(n.pingEvery, PingEvery), n.Until
	if until == nil {
		until = timers.Until
	}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		// All servers at the same moment. One that passes while the answer is on its way is not left out: the next ping
		// follows that answer at once.
		next.Reset(until(every))
		if _, err := s.Ping(); err != nil {
			return fmt.Errorf("the server does not answer: %w", err)
		}
		if n.Answered != nil {
			n.Answered()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.CloseChan():
			return nil
		case <-next.C:
		}
	}
}

// serve is one stream.
func (n Node) serve(ctx context.Context, stream *yamux.Stream) {
	defer func() { _ = stream.Close() }()               // what was to be said has been
	_ = stream.SetDeadline(time.Now().Add(openTimeout)) // fails of a stream that is closed, which reading will say
	to, err := readTarget(stream)
	if err == nil && !n.Allowed(to) {
		err = fmt.Errorf("%s is not this node's", to)
	}
	var target net.Conn
	if err == nil {
		target, err = n.Dial(ctx, "tcp", to.String())
	}
	if err != nil {
		reason := err.Error()
		_ = writeMessage(stream, reason[:min(len(reason), maxReason)])
		return
	}
	defer target.Close()
	if writeMessage(stream, "") != nil {
		return
	}
	_ = stream.SetDeadline(time.Time{})
	relay.Join(ctx, target, stream, nil)
}
