// SPDX-License-Identifier: Apache-2.0

package nodecreds

import (
	"crypto/x509"
	"sync"
)

// Guard refuses revoked nodes at a server: their client certificates, and the connections that they have opened with
// these. server/secrets gives it the list, and the ports of the server ask it. Its zero value, and nil, refuse nothing.
type Guard struct {
	mu      sync.Mutex
	revoked Revoked // replaced as a whole
	open    map[*connection]struct{}
}

type connection struct {
	cert      *x509.Certificate
	closeConn func()
}

// Revoked returns the list. It must not be changed.
func (g *Guard) Revoked() Revoked {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.revoked
}

// Refuses returns why a client certificate is refused, or nil.
func (g *Guard) Refuses(c *x509.Certificate) error { return g.Revoked().Refuses(c) }

// Hold calls end once if the certificate of a connection is refused before the connection is released. It returns an
// error if it is refused already.
func (g *Guard) Hold(c *x509.Certificate, end func()) (release func(), err error) {
	if g == nil || !IsNode(c) {
		return func() {}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.revoked.Refuses(c); err != nil {
		return nil, err
	}
	if g.open == nil {
		g.open = map[*connection]struct{}{}
	}
	held := &connection{cert: c, closeConn: end}
	g.open[held] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.open, held)
	}, nil
}

// Set replaces the list, and returns when the connections of revoked nodes are ended.
func (g *Guard) Set(r Revoked) {
	if g == nil {
		return
	}
	g.mu.Lock()
	g.revoked = r
	var refused []*connection
	for c := range g.open {
		if r.Refuses(c.cert) != nil {
			refused = append(refused, c)
			delete(g.open, c)
		}
	}
	g.mu.Unlock()
	for _, c := range refused {
		c.closeConn() // it may call release
	}
}
