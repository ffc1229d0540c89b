// SPDX-License-Identifier: Apache-2.0

package connlimit_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestIdentifiedConnectionsStayUntilTheEnd: connections that say nothing do not keep others out, those that have said
// who they are stay, and at the end all are closed.
func TestIdentifiedConnectionsStayUntilTheEnd(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var serving atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- connlimit.Serve(ctx, l, 2, func(_ context.Context, c net.Conn, identified func()) {
			serving.Add(1)
			defer serving.Add(-1)
			buffer := make([]byte, 1)
			for {
				if _, err := c.Read(buffer); err != nil {
					return
				}
				identified()
				if _, err := c.Write(buffer); err != nil {
					return
				}
			}
		})
	}()
	dial := func() net.Conn {
		t.Helper()
		c := testenv.Must(net.Dial("tcp", l.Addr().String()))(t)
		t.Cleanup(func() { c.Close() })
		testenv.NoError(t, c.SetDeadline(time.Now().Add(2*time.Minute)))
		return c
	}
	readAll := func(c net.Conn) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	}
	known := dial()
	testenv.NoError(t, readAll(known))
	oldest := dial()
	for range 2 {
		dial()
	}
	testenv.Fails(t, testenv.Err(oldest.Read(make([]byte, 1))), "the oldest that says nothing stays")
	testenv.Check(t, readAll(known), "one that has said who it is")
	cancel()
	testenv.Check(t, <-done)
	testenv.Equal(t, serving.Load(), 0, "are still served:")
	testenv.Fails(t, readAll(known), "a connection outlives the end")
	// A listener that breaks is reported.
	testenv.Fails(t, connlimit.Serve(t.Context(), l, 2, nil), "a listener that is closed is not reported")
}
