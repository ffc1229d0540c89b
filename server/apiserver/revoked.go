// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"net"
	"net/http"
	"sync"

	"k8s.io/apiserver/pkg/authentication/authenticator"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
)

// revocationCheck is upstream's authenticator without revoked nodes. Their open connections are closed, and with these
// all watches and streams.
type revocationCheck struct {
	authenticator.Request
	guard *nodecreds.Guard
	conns *nodeListener // nil if the API server opens its port itself
}

// AuthenticateRequest implements authenticator.Request.
func (a revocationCheck) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		if err := a.check(r); err != nil {
			return nil, false, fmt.Errorf("the client's certificate is not accepted: %w", err)
		}
	}
	return a.Request.AuthenticateRequest(r)
}

func (a revocationCheck) check(r *http.Request) error {
	shown := r.TLS.PeerCertificates[0]
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if a.conns != nil && local != nil {
		if c, ok := a.conns.open.Load(connectionAddresses{local.String(), r.RemoteAddr}); ok {
			hold := func() (func(), error) { return a.guard.Hold(shown, func() { _ = c.(*nodeConn).Conn.Close() }) }
			if err := c.(*nodeConn).holdOnce(hold); err != nil {
				return err
			}
		}
	}
	return a.guard.Refuses(shown) // again: the connection may be held since before
}

// nodeListener finds a connection by its addresses, which are all that a handler of net/http knows of it.
type nodeListener struct {
	net.Listener
	open sync.Map // ends → *nodeConn
}

type connectionAddresses struct{ local, remote string }

// Accept implements net.Listener.
func (l *nodeListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &nodeConn{Conn: inner, l: l, addresses: connectionAddresses{inner.LocalAddr().String(), inner.RemoteAddr().String()}}
	l.open.Store(c.addresses, c)
	return c, nil
}

// nodeConn is a connection whose client may be a node.
type nodeConn struct {
	net.Conn
	l         *nodeListener
	addresses connectionAddresses

	mu      sync.Mutex
	closed  bool
	release func() // set when the connection is held
}

// holdOnce holds the connection, if it is not held yet and not closed.
func (c *nodeConn) holdOnce(hold func() (release func(), err error)) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.release == nil && !c.closed {
		c.release, err = hold()
	}
	return err
}

// Close implements net.Conn.
func (c *nodeConn) Close() error {
	c.l.open.CompareAndDelete(c.addresses, c)
	c.mu.Lock()
	release := c.release
	c.closed, c.release = true, nil
	c.mu.Unlock()
	if release != nil {
		release()
	}
	return c.Conn.Close()
}
