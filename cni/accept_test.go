// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2/ktesting"
)

// poorListener has no descriptor for the first calls.
type poorListener struct {
	net.Listener
	failures int
	conn     net.Conn
}

func (l *poorListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, unix.EMFILE
	}
	return l.conn, nil
}

// TestAcceptRetriesWithoutFileDescriptors: a process that has no descriptor for a call takes the next one when it has,
// instead of ending the node.
func TestAcceptRetriesWithoutFileDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{podNetwork: &podNetwork{log: ktesting.NewLogger(t, ktesting.NewConfig())}}
		conn, other := net.Pipe()
		defer conn.Close()
		defer other.Close()
		began := time.Now()
		if got := s.accept(t.Context(), &poorListener{failures: 3, conn: conn}); got != conn || time.Since(began) != 3*acceptPause {
			t.Errorf("got %v after %s", got, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got := s.accept(ctx, &poorListener{failures: 1}); got != nil {
			t.Errorf("after the end: %v", got)
		}
	})
}
