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

// Node serves a node's end of a tunnel: it opens connections on the node for the server.
type Node struct {
	// Allowed reports whether an address is the node's own. A stream to another one is refused.
	Allowed func(netip.AddrPort) bool
	// Dial connects to such an address. nil means TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Answered, when set, is called for each reply of the server. It must not block.
	Answered func()
	// Readiness, when set, is called with each reason why the server is not ready for clients, such as NoLeader, and
	// with "" when it is ready again. A server that has reported nothing is ready. It must not block.
	Readiness func(reason string)

	// Until returns the time until the next moment of a period. nil means timers.Until. Nodes that share a process,
	// which only tests have, need different moments.
	Until func(period time.Duration) time.Duration

	// pingEvery and writeTimeout replace PingEvery and writeTimeout in tests, which wait for less.
	pingEvery, writeTimeout time.Duration
}

// Serve serves a connection to a server until ctx is done or the connection ends. It returns when all of its streams
// have ended. The connection is closed then. The error is why it ended.
func (n Node) Serve(ctx context.Context, c net.Conn) error {
	if n.Dial == nil {
		n.Dial = (&net.Dialer{Timeout: openTimeout}).DialContext
	}
	o := config(maxStreams)
	o.ConnectionWriteTimeout = cmp.Or(n.writeTimeout, writeTimeout)
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
			running.Go(func() { refuse(stream) })
		}
	}
}

// refuse closes a stream that is one too many. A server of any version receives the reason.
func refuse(stream *yamux.Stream) {
	defer func() { _ = stream.Close() }()               // the error cannot be reported to a caller
	_ = stream.SetDeadline(time.Now().Add(openTimeout)) // fails for a closed stream, which writing reports
	_ = writeMessage(stream, tooMany)
}

// ping pings the server periodically, as a sign of life. It returns an error when the server does not reply.
func (n Node) ping(ctx context.Context, s *yamux.Session) error {
	every, until := cmp.Or(n.pingEvery, PingEvery), n.Until
	if until == nil {
		until = timers.Until
	}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		// All servers are pinged at the same moment. If that moment passes while a reply is outstanding, the next ping
		// follows the reply at once.
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

// serve serves one stream.
func (n Node) serve(ctx context.Context, stream *yamux.Stream) {
	defer func() { _ = stream.Close() }()               // all data has been sent by then
	_ = stream.SetDeadline(time.Now().Add(openTimeout)) // fails for a closed stream, which reading reports
	to, err := readTarget(stream)
	if err == nil && to == readinessTarget && n.Readiness != nil {
		n.serveReadiness(stream)
		return
	}
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
