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
	a.Transport.mu.Lock()
	conns := len(a.conns)
	a.Transport.mu.Unlock()
	if conns != 0 {
		t.Errorf("%d connections are left after %v of silence", conns, 3*a.opts.Timeout)
	}
	m.HealAll()
}
