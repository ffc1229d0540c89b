// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

const (
	// leaveAfter is the least time for which a server is not ready before its connections are closed. When all servers
	// lose their leader, they report it within that time, and none is left.
	leaveAfter = 500 * time.Millisecond
	// leaveSpread is the time over which the nodes of a server leave it: they would all begin handshakes, lists and
	// watches at another one at the same moment.
	leaveSpread = 2 * time.Second
)

// unready is a server's report that it is not ready for clients.
type unready struct {
	reason       string    // such as nodetunnel.NoLeader
	closeConnsAt time.Time // its connections are closed then, if another server is ready
}

// SetReadiness records the reason why a server is not ready for clients, as it reported over the node's own connection
// to it. The reason is empty when the server is ready. A server that has reported nothing is ready.
func (l *serverList) SetReadiness(server, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, known := l.unready[server]
	switch {
	case reason == "" && !known:
		return
	case reason == "":
		delete(l.unready, server)
	case known:
		l.unready[server] = unready{reason, before.closeConnsAt}
	default:
		l.unready[server] = unready{reason, l.now().Add(leaveAfter + rand.N(leaveSpread))}
	}
	if server == l.servers[0] {
		l.showReadiness()
	}
}

// leaveUnready closes the connections to a server that is not ready, if it is time and another server is ready. It
// reports whether it did.
func (b *Balancer) leaveUnready(server string) bool {
	u, is := b.unreadiness(server)
	if !is || b.now().Before(u.closeConnsAt) {
		return false
	}
	other := b.otherReady(server)
	if other == "" {
		return false
	}
	b.o.Logger.Warn("a server is not ready while another one is; moving its connections to the other one", "server", server,
		"reason", u.message(), "other", other)
	b.dropServer(server)
	return true
}

// UseAnother closes the connections to the server in use and uses another one, if one presents its certificate. It is
// for a node that starts: the server in use may not be ready, and cannot report that to this node yet.
func (b *Balancer) UseAnother(ctx context.Context) {
	servers := b.Servers()
	for _, other := range servers[1:] {
		if b.ensureVerified(ctx, other) == nil {
			b.o.Logger.Warn("a server is not ready; trying another one", "server", servers[0], "other", other)
			b.dropServer(servers[0])
			b.moveToFront(other)
			return
		}
	}
}

// message says why a server is not ready.
func (u unready) message() string {
	switch u.reason {
	case nodetunnel.NoLeader:
		return "its store has no leader"
	case nodetunnel.ClockOff:
		return "its clock is wrong"
	}
	return fmt.Sprintf("%q", u.reason)
}

// ready reports whether a server has not reported that it is not ready. The caller holds mu.
func (l *serverList) ready(server string) bool {
	_, is := l.unready[server]
	return !is
}

// unreadiness returns a server's report that it is not ready, if there is one.
func (l *serverList) unreadiness(server string) (u unready, is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u, is = l.unready[server]
	return u, is
}

// showReadiness shows in status whether the server in use is ready. The caller holds mu.
func (l *serverList) showReadiness() {
	server := l.servers[0]
	u, is := l.unready[server]
	if !is {
		l.o.Part.Set(status.Running, "")
		return
	}
	l.o.Part.Set(status.Degraded, fmt.Sprintf("%s, the server that this node uses, is not ready: %s. This node uses another server as soon "+
		"as one is ready. Pods keep running; the API may not answer. `coracle status` on that server says more", server, u.message()))
}
