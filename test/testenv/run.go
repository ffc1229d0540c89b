// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Run runs a part of a program until stop is called, at the latest when the test ends, and fails the test with the
// error with which the part ends.
func Run(t testing.TB, part func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1) // its only result
	go func() { ended <- part(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		Check(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

// Accept hands the connections that arrive at l to serve, one after the other, until l is closed.
func Accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		serve(c)
	}
}
