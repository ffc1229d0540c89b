// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// An address on the list may lead back to this program: it is one of this machine's, or the operator has named the
// local address as a server. Each connection to it would open another one, until no file can be opened any more; and
// the first of them that gets to a server would even show a server's certificate there. A connection of which this
// program has both ends tells: who has opened it and who has accepted it see the same two addresses.

var errItself = errors.New("it leads back to this program")

// addressPair has the addresses of a TCP connection, first that of the end that opened it.
type addressPair struct{ from, to string }

// opened are those of a connection that this program has opened, accepted of one that it has accepted.
func opened(c net.Conn) addressPair {
	return addressPair{c.LocalAddr().String(), c.RemoteAddr().String()}
}
func accepted(c net.Conn) addressPair {
	return addressPair{c.RemoteAddr().String(), c.LocalAddr().String()}
}

// enter notes one end of a connection until leave is called, and says whether this program has the other one, too. It
// returns true for the second of the two.
func (b *Balancer) enter(e addressPair) (itself bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pairs[e]++
	return b.pairs[e] > 1
}

func (b *Balancer) leave(e addressPair) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pairs[e]--; b.pairs[e] == 0 {
		delete(b.pairs, e)
	}
}

// connect opens a connection to a server. Who closes it calls leave.
func (b *Balancer) connect(ctx context.Context, server string) (net.Conn, error) {
	d := net.Dialer{Timeout: b.within(dialTimeout)}
	c, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	if b.enter(opened(c)) {
		b.leave(opened(c))
		_ = c.Close() // nothing was said
		return nil, fmt.Errorf("%s is no server: %w", server, errItself)
	}
	return c, nil
}
