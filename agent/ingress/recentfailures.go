// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// recentWindow is how long the status line mentions a failure of the proxy, or a limit that was reached, after the last
// time.
const recentWindow = 10 * time.Minute

// episode counts events of one kind. After recentWindow without an event, the next event begins a new episode.
type episode struct {
	count           uint64
	firstAt, lastAt time.Time
}

func (e *episode) add(n uint64, now time.Time) {
	if n == 0 {
		return
	}
	if now.Sub(e.lastAt) > recentWindow {
		*e = episode{firstAt: now}
	}
	e.count += n
	e.lastAt = now
}

func (e *episode) isRecent(now time.Time) bool {
	return e.count > 0 && now.Sub(e.lastAt) <= recentWindow
}

func (e *episode) beginTime() string { return e.firstAt.Format(time.TimeOnly) }

// recentFailures are the limits that clients of this node reached lately, and the failures of the proxy.
type recentFailures struct {
	memory, connections, requests episode
	exits                         episode
	exitCause                     error // of the last end
}

// addCounts adds what a proxy has counted since the last time.
func (t *recentFailures) addCounts(before, after table.Limited, now time.Time) {
	t.memory.add(after.Memory-before.Memory, now)
	t.connections.add(after.Connections-before.Connections, now)
	t.requests.add(after.Requests-before.Requests, now)
}

// addExit counts that a proxy ended without an order to do so.
func (t *recentFailures) addExit(cause error, now time.Time) {
	t.exits.add(1, now)
	t.exitCause = cause
}

// texts returns what the status line says. memory is the limit of memory in bytes, connections the limit of
// connections.
func (t *recentFailures) texts(memory int64, connections int, now time.Time) (out []string) {
	if t.exits.isRecent(now) {
		out = append(out, fmt.Sprintf("since %s it has ended %d times and was started again, the last time since %v", t.exits.beginTime(),
			t.exits.count, t.exitCause))
	}
	if t.memory.isRecent(now) {
		out = append(out, fmt.Sprintf("since %s %d connections and requests were refused or cut for lack of memory, of clients with many: "+
			"--ingress-memory, which is %dMi, gives it more", t.memory.beginTime(), t.memory.count, memory>>20))
	}
	if t.connections.isRecent(now) {
		out = append(out, fmt.Sprintf("since %s %d connections were refused, or idle ones closed, at the limit for one client or for all: "+
			"--ingress-max-connections, which is %d, raises it", t.connections.beginTime(), t.connections.count, connections))
	}
	if t.requests.isRecent(now) {
		out = append(out, fmt.Sprintf("since %s %d requests of HTTP/2 or HTTP/3 were refused, since their client or all had too many under "+
			"way: --ingress-max-connections, which is %d, raises the limit", t.requests.beginTime(), t.requests.count, connections))
	}
	return out
}
