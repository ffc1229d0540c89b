// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"context"
	"net"
	"sync"
)

// Serve takes connections from l until ctx is done, and returns when none is left; l is closed then. Each has its own
// goroutine in serve, and is closed when that returns or its context ends. It counts as one that has not said who it
// is, of which there are max at most, until identified is called. The error is l's, nil after ctx was done.
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
			closed := context.AfterFunc(own, func() { _ = c.Close() }) // no caller to report to
			serve(own, c, identified)
			if closed() {
				_ = c.Close()
			}
		})
	}
}
