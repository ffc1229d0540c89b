// SPDX-License-Identifier: Apache-2.0

// Package relay copies bytes between two connections.
//
// It only copies: the caller opens and closes the connections. It never interprets the bytes: with TLS, the session is
// between the other ends of the connections.
//
// Its goroutines: one for each direction of a connection.
package relay

import (
	"context"
	"io"
	"net"
	"sync/atomic"
)

// Join copies what each connection receives to the other one, until both directions have ended or ctx is done. The end
// of one direction leaves the other open, since TLS sends a close_notify in each. An error ends both. silent, when set,
// is called when b ends its direction first and without having sent a byte. It is called before a sees that end.
func Join(ctx context.Context, a, b net.Conn, silent func()) {
	defer context.AfterFunc(ctx, func() { _, _ = a.Close(), b.Close() })()
	var left atomic.Bool // a's direction has ended
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
	left.Store(err == nil) // the error may be b's: a client seldom resets a connection before it has received something
	passEnd(b, a, err)
	<-ended
}

// passEnd ends the direction to to, with the error with which copying ended. On a connection without CloseWrite, such
// as yamux's streams, Close ends the direction.
func passEnd(to, from net.Conn, err error) {
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil && half.CloseWrite() == nil {
		return
	}
	_ = to.Close() // ends reads and writes of other goroutines on it
	if err != nil {
		_ = from.Close()
	}
}
