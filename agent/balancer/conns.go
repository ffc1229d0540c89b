// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/relay"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// connTable has the clients' open connections, each with its server, and counts those from this machine.
type connTable struct {
	mu         sync.Mutex
	openConns  map[net.Conn]string // by the server of each
	pairs      map[addressPair]int // of open connections
	localCount int                 // the number of open connections from this machine
	localEnded timers.Signal       // the last of these connections has ended

	testTimeout time.Duration // 0, or in tests a value for dialTimeout, handshakeTimeout and holdFor
}

// timeoutOr returns usual, or in tests testTimeout.
func (t *connTable) timeoutOr(usual time.Duration) time.Duration { return cmp.Or(t.testTimeout, usual) }

// countLocal counts a connection from this machine until the returned function is called.
func (t *connTable) countLocal() (left func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.localCount++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.localCount--; t.localCount == 0 {
			t.localEnded.Send()
		}
	}
}

// forwardData forwards data between a client's connection and one to a server. closedByServer, when set, is called when
// the server ends the connection first, without having sent anything. It is called before the client sees that end.
func (t *connTable) forwardData(ctx context.Context, c, up net.Conn, server string, closedByServer func()) {
	defer c.Close()
	defer up.Close()
	t.mu.Lock()
	t.openConns[up] = server
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.openConns, up)
	}()
	defer t.removeEnd(pairOfOpened(up))
	relay.Join(ctx, c, up, closedByServer)
}

// inUse returns the servers with open connections.
func (t *connTable) inUse() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Compact(slices.Sorted(maps.Values(t.openConns)))
}

// Connected reports whether this machine has connections to a server. An unresponsive server's connections are closed.
func (t *connTable) Connected() bool { return len(t.inUse()) > 0 }

// closeAll closes a server's connections, and does not move it in the list.
func (t *connTable) closeAll(server string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c, of := range t.openConns {
		if of == server {
			_ = c.Close() // the goroutine that copies the other direction notices
		}
	}
}
