// SPDX-License-Identifier: Apache-2.0

// Package relay passes bytes on between two connections.
//
// It owns the copying. Opening and closing are its caller's. It never reads what the two say: TLS goes on between their
// other ends.
package relay

import (
	"context"
	"io"
	"net"
	"sync/atomic"
)

// Join passes on what either connection says to the other one, until both have ended or ctx is done. The end of one way
// leaves the other open, since TLS says good-bye both ways; an error ends both. silent, when set, is called where b
// ends its way first and without a word, before a sees that end.
func Join(ctx context.Context, a, b net.Conn, silent func()) {
	defer context.AfterFunc(ctx, func() { _, _ = a.Close(), b.Close() })()
	var left atomic.Bool // a has ended its way
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n, err := io.Copy(a, b)
		if silent != nil && n == 0 && !left.Load() && ctx.Err() == nil {
			silent()
		}
		passEnd(a, b, err)
	}()
	_, err := io.Copy(b, a)
	left.Store(err == nil) // an error may be b's: before it has said anything, a client seldom resets
	passEnd(b, a, err)
	<-ended
}

// passEnd passes the end of one way on, of which err says how it ended. A connection without CloseWrite ends one way by
// Close, as yamux's streams do.
func passEnd(to, from net.Conn, err error) {
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil && half.CloseWrite() == nil {
		return
	}
	_ = to.Close() // a goroutine that still reads or writes there notices
	if err != nil {
		_ = from.Close()
	}
}
