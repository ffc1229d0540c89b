// SPDX-License-Identifier: Apache-2.0

package localvolume

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestUnresponsiveNodeTimesOut: a node that does not answer is given up after half a minute, whether it takes the
// question or not; one that answers late is heard.
func TestUnresponsiveNodeTimesOut(t *testing.T) {
	for name, tt := range map[string]struct {
		node func(c net.Conn) // what stands at the other end
		took time.Duration
		want error
	}{
		"stopped before the question": {node: func(net.Conn) {}, took: requestTimeout, want: ErrUnresponsive},
		"stopped behind the question": {node: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, took: requestTimeout, want: ErrUnresponsive},
		"stopped in the answer": {node: func(c net.Conn) {
			_ = json.NewDecoder(c).Decode(&Request{})
			_, _ = c.Write([]byte(`{"path":`))
		}, took: requestTimeout, want: ErrUnresponsive},
		"gone behind the question": {node: func(c net.Conn) {
			_ = json.NewDecoder(c).Decode(&Request{})
			_ = c.Close()
		}, want: ErrUnresponsive},
		"woken in time": {node: func(c net.Conn) {
			time.Sleep(requestTimeout - time.Second) // fake time
			_ = json.NewDecoder(c).Decode(&Request{})
			_ = json.NewEncoder(c).Encode(Response{Path: "/storage/x"})
		}, took: requestTimeout - time.Second},
	} {
		for _, op := range []Op{Make, Remove, Grow, Space} {
			t.Run(name+" "+string(op), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server, node := net.Pipe()
					go tt.node(node)
					began := time.Now()
					a, err := Call(t.Context(), server, Request{Op: op, Name: "x"})
					if !errors.Is(err, tt.want) || time.Since(began) != tt.took || err == nil && a.Path != "/storage/x" {
						t.Errorf("after %v: %+v, %v", time.Since(began), a, err)
					}
				})
			})
		}
	}
}

// TestAskEndsWithLeadership: who ceases to lead does not wait for a node that is silent, and does not call it so.
func TestAskEndsWithLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, _ := net.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := Call(ctx, server, Request{Op: Space}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnresponsive) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestIdleConnectionIsClosed: who connects to a node and asks nothing is let go.
func TestIdleConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, node := net.Pipe()
		began := time.Now()
		go New(Options{Paths: []string{"/none"}}).Serve(t.Context(), node)
		if n, err := server.Read(make([]byte, 1)); err != io.EOF || time.Since(began) != requestTimeout {
			t.Errorf("after %v: %d bytes, %v", time.Since(began), n, err)
		}
	})
}
