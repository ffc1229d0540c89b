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

// addressPair has the addresses of a TCP connection. opener is the end that opened it.
type addressPair struct{ opener, acceptor string }

// pairOfOpened returns the addresses of a connection that this program has opened. pairOfAccepted does for one that it
// has accepted.
func pairOfOpened(c net.Conn) addressPair {
	return addressPair{c.LocalAddr().String(), c.RemoteAddr().String()}
}
func pairOfAccepted(c net.Conn) addressPair {
	return addressPair{c.RemoteAddr().String(), c.LocalAddr().String()}
}

// recordEnd records one end of a connection until removeEnd is called. It returns true if this program has the other
// end, too: the second of the two calls does.
func (t *connTable) recordEnd(e addressPair) (loop bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pairs[e]++
	return t.pairs[e] > 1
}

func (t *connTable) removeEnd(e addressPair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pairs[e]--; t.pairs[e] == 0 {
		delete(t.pairs, e)
	}
}

// connect opens a connection to a server. The caller calls removeEnd when it closes it.
func (t *connTable) connect(ctx context.Context, server string) (net.Conn, error) {
	d := net.Dialer{Timeout: t.timeoutOr(dialTimeout)}
	c, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	if t.recordEnd(pairOfOpened(c)) {
		t.removeEnd(pairOfOpened(c))
		_ = c.Close() // nothing was sent
		return nil, fmt.Errorf("%s is no server: %w", server, errLoop)
	}
	return c, nil
}
