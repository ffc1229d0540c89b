// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"context"
	"net"
	"sync"
)

// Serve accepts connections from l until ctx is done. It closes l, and returns when all connections are closed. It
// calls serve for each connection in a goroutine of its own. The connection is closed when serve returns or the
// connection's context ends. It counts as unauthenticated until serve calls identified. At most max connections may be
// unauthenticated. The error is l's; it is nil after ctx was done.
func Serve(ctx context.Context, l net.Listener, max int, serve func(ctx context.Context, c net.Conn, identified func())) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	waiting := Table{Max: max}
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		own, closeConn := context.WithCancel(ctx)
		identified, _ := waiting.Add(c.RemoteAddr(), closeConn) // the Table is never closed
		running.Go(func() {
			defer identified()
			defer closeConn()
			closed := context.AfterFunc(own, func() { _ = c.Close() }) // there is no caller to report an error to
			serve(own, c, identified)
			if closed() {
				_ = c.Close()
			}
		})
	}
}
