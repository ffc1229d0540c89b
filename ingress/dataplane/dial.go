// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backendDialer makes the dialer of backends. A machine that lost its power closes no connection, so the kernel probes
// each idle connection (TCP keep-alive). While sent bytes are unacknowledged the kernel sends no probes. It sends these
// bytes again for a quarter of an hour. Requests have time-outs for that case, and tunnels have TCP_USER_TIMEOUT. That
// option also ends connections whose peer reads nothing. Requests do not use it, since a backend may read an upload
// slowly.
func backendDialer(o Options, tunnel bool) *net.Dialer {
	d := &net.Dialer{Timeout: o.DialTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: o.UnresponsiveTimeout / 3, Interval: o.UnresponsiveTimeout / 6, Count: 4, // the kernel counts whole seconds
	}}
	if tunnel {
		d.Control = func(_, _ string, raw syscall.RawConn) error { return setUserTimeout(raw, o.UnresponsiveTimeout) }
	}
	return d
}

// setUserTimeout limits the time for which sent bytes, and probes, may be unacknowledged on a socket (RFC 5482).
func setUserTimeout(raw syscall.RawConn, longest time.Duration) error {
	var failure error
	err := raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(longest.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failure
}

// maxLeft limits, for each endpoint, the attempts to connect that go on after the end of their requests.
const maxLeft = 16

// endpointContext is the context of a request to an endpoint. It is its own value for endpointKey.
type endpointContext struct {
	context.Context
	endpoint *endpoint
}

type endpointKey struct{}

var errNoEndpoint = errors.New("the context of a request to a backend names no endpoint")

// Value implements context.Context.
func (c *endpointContext) Value(key any) any {
	if key == (endpointKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func (e *endpoint) context(parent context.Context) context.Context {
	return &endpointContext{parent, e}
}

// dial connects to the endpoint of an endpointContext for requests. Addresses are literal, so no name is resolved. ctx
// has the values of the request's context and not its end: http.Transport dials on.
func (u *upstream) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return u.dialBy(ctx, u.dialer, network, address)
}

// dialTunnel connects to an endpoint for a tunnel. When ctx is done it returns, and the attempt goes on, as those of
// http.Transport.
func (u *upstream) dialTunnel(ctx context.Context, e *endpoint) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		conn, err := u.dialBy(context.WithoutCancel(e.context(ctx)), u.tunnelDialer, "tcp", e.address)
		select {
		case done <- result{conn, err}:
		case <-ctx.Done():
			if err == nil {
				_ = conn.Close()
			}
		}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// dialBy connects, and records at the endpoint whether that failed, even when the request has ended before: by a
// time-out of its own, or because the client did not wait. Of such attempts maxLeft go on.
func (u *upstream) dialBy(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	to, ok := ctx.Value(endpointKey{}).(*endpointContext)
	if !ok {
		return nil, &dialError{errNoEndpoint}
	}
	e := to.endpoint
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waited := context.AfterFunc(to.Context, func() {
		if e.left.Add(1) > maxLeft {
			cancel()
		}
	})
	conn, err := dialer.DialContext(ctx, network, address)
	if !waited() {
		e.left.Add(-1)
	}
	if err != nil {
		if ctx.Err() == nil {
			e.failed.Store(time.Now().UnixNano())
		}
		u.failures.Add(1)
		return nil, &dialError{err}
	}
	e.connected()
	return conn, nil
}
