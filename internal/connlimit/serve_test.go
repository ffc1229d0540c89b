// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestServe: connections that say nothing do not keep others out, those that have said who they are stay, and at the
// end all are closed.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var serving atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, 2, func(_ context.Context, c net.Conn, identified func()) {
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
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
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
	if err := readAll(known); err != nil {
		t.Fatal(err)
	}
	oldest := dial()
	for range 2 {
		dial()
	}
	if _, err := oldest.Read(make([]byte, 1)); err == nil {
		t.Error("the oldest that says nothing stays")
	}
	if err := readAll(known); err != nil {
		t.Errorf("one that has said who it is: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := serving.Load(); n != 0 {
		t.Errorf("%d are still served", n)
	}
	if err := readAll(known); err == nil {
		t.Error("a connection outlives the end")
	}
	// A listener that breaks is told.
	if err := Serve(t.Context(), l, 2, nil); err == nil {
		t.Error("a listener that is closed is not told")
	}
}
