// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/memnet"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, (*testing.M).Run)) }

// TestClockSetBack: that a machine's clock is set back by an hour does not keep a connection on which nothing comes in.
// It runs in a second kernel, which has a clock of its own.
func TestClockSetBack(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.Options{Within: 5 * time.Minute})
		return
	}
	m := memory{memnet.New()}
	m.Backoff(true)
	a, b := start(t, m, 0, "a.1", serving), start(t, m, 1, "b.1", serving)
	address := string(b.address)
	testenv.Must(a.Call(t.Context(), address, "echo", nil))(t)
	clock := unix.NsecToTimeval(time.Now().Add(-time.Hour).UnixNano())
	testenv.NoError(t, unix.Settimeofday(&clock))
	m.Partition([]string{"a"}, []string{"b"})
	for began := time.Now(); time.Since(began) < 3*a.opts.Timeout; {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		testenv.Fails(t, testenv.Err(a.Call(ctx, address, "echo", nil)), "a call was answered")
		cancel()
	}
	a.Transport.connections.mu.Lock()
	conns := len(a.conns)
	a.Transport.connections.mu.Unlock()
	if conns != 0 {
		t.Errorf("%d connections are left after %v of silence", conns, 3*a.opts.Timeout)
	}
	m.HealAll()
}

// TestClockEndsNoConnection: that a machine's clock is set back or forward ends no connection for calls, while a call
// is under way and while none is.
func TestClockEndsNoConnection(t *testing.T) {
	if !uml.Inside() {
		uml.Run(t, uml.Options{Within: 5 * time.Minute})
		return
	}
	m := memory{memnet.New()}
	a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", serving)
	address := string(b.address)
	testenv.Must(a.Call(t.Context(), address, "echo", nil))(t)
	before := a.onlyConn(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := a.Call(ctx, address, "hang", nil)
		done <- err
	}()
	const turn = idleTimeout + 2*time.Second // in which what keeps connections alive has its turn
	time.Sleep(turn)                         // nothing may happen, so there is nothing to wait for
	for _, step := range []time.Duration{-400 * 24 * time.Hour, 800 * 24 * time.Hour} {
		clock := unix.NsecToTimeval(time.Now().Add(step).UnixNano())
		testenv.NoError(t, unix.Settimeofday(&clock))
		select {
		case err := <-done:
			t.Fatalf("the clock was set by %v: %v", step, err)
		case <-time.After(turn):
		}
		testenv.Equal(t, a.onlyConn(t), before, "the clock was set by %v: another connection was made:", step)
	}
	cancel()
	testenv.Fails(t, <-done, "a call that was given up")
}
