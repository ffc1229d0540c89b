// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// An address on the list may lead back to this program: it is one of this machine's, or the operator has named the
// local address as a server. Each connection to it would open another one, until no file can be opened any more. The
// first of them that reaches a server would even get a server's certificate. Such a loop is detected by the
// connections' addresses: the end that opened a connection and the end that accepted it have the same two addresses.

var errLoop = errors.New("its address leads back to this program itself")

// addressPair has the addresses of a TCP connection. from is the end that opened it.
type addressPair struct{ from, to string }

// opened returns the addresses of a connection that this program has opened. accepted does for one that it has
// accepted.
func opened(c net.Conn) addressPair {
	return addressPair{c.LocalAddr().String(), c.RemoteAddr().String()}
}
func accepted(c net.Conn) addressPair {
	return addressPair{c.RemoteAddr().String(), c.LocalAddr().String()}
}

// enter records one end of a connection until leave is called. It returns true if this program has the other end, too,
// which is so for the second of the two calls.
func (t *connTable) enter(e addressPair) (loop bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pairs[e]++
	return t.pairs[e] > 1
}

func (t *connTable) leave(e addressPair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pairs[e]--; t.pairs[e] == 0 {
		delete(t.pairs, e)
	}
}

// connect opens a connection to a server. The caller calls leave when it closes it.
func (t *connTable) connect(ctx context.Context, server string) (net.Conn, error) {
	d := net.Dialer{Timeout: t.within(dialTimeout)}
	c, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	if t.enter(opened(c)) {
		t.leave(opened(c))
		_ = c.Close() // nothing was sent
		return nil, fmt.Errorf("%s is no server: %w", server, errLoop)
	}
	return c, nil
}
