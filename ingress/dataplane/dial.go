// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
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
		Enable: true, Idle: o.Unresponsive / 3, Interval: o.Unresponsive / 6, Count: 4, // the kernel counts whole seconds
	}}
	if tunnel {
		d.Control = func(_, _ string, raw syscall.RawConn) error { return setUserTimeout(raw, o.Unresponsive) }
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

// dial connects to an endpoint for requests. Addresses are literal, so no name is resolved.
func (p *Proxy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return p.dialBy(ctx, p.dialer, network, address)
}

// dialTunnel connects to an endpoint for a tunnel.
func (p *Proxy) dialTunnel(ctx context.Context, address string) (net.Conn, error) {
	return p.dialBy(ctx, p.tunnelDialer, "tcp", address)
}

func (p *Proxy) dialBy(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		p.stats.DialFailures.Add(1)
		return nil, &dialError{err}
	}
	return conn, nil
}
