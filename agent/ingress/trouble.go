// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// recentWindow is how long after the last time the status line says that a limit was reached, or that the proxy ended.
const recentWindow = 10 * time.Minute

// episode counts events of one kind. After the time lately without any, the next one begins it.
type episode struct {
	count       uint64
	since, last time.Time
}

func (e *episode) add(n uint64, now time.Time) {
	if n == 0 {
		return
	}
	if now.Sub(e.last) > recentWindow {
		*e = episode{since: now}
	}
	e.count += n
	e.last = now
}

func (e *episode) lasts(now time.Time) bool { return e.count > 0 && now.Sub(e.last) <= recentWindow }

func (e *episode) beginTime() string { return e.since.Format(time.TimeOnly) }

// recentFailures are what clients of the node's proxies met lately.
type recentFailures struct {
	memory, connections, requests episode
	ends                          episode
	cause                         error // of the last end
}

// count adds what a proxy has counted since the last time.
func (t *recentFailures) count(before, after table.Limited, now time.Time) {
	t.memory.add(after.Memory-before.Memory, now)
	t.connections.add(after.Connections-before.Connections, now)
	t.requests.add(after.Requests-before.Requests, now)
}

// ended adds an end of a proxy that was not asked for.
func (t *recentFailures) ended(cause error, now time.Time) {
	t.ends.add(1, now)
	t.cause = cause
}

// texts returns what the status line says. memory is the proxy's limit in bytes, connections that of connections.
func (t *recentFailures) texts(memory int64, connections int, now time.Time) (out []string) {
	if t.ends.lasts(now) {
		out = append(out, fmt.Sprintf("since %s it has ended %d times and was started again, the last time since %v", t.ends.beginTime(),
			t.ends.count, t.cause))
	}
	if t.memory.lasts(now) {
		out = append(out, fmt.Sprintf("since %s %d connections and requests were refused or cut for lack of memory, of clients with many: "+
			"--ingress-memory, which is %dMi, gives it more", t.memory.beginTime(), t.memory.count, memory>>20))
	}
	if t.connections.lasts(now) {
		out = append(out, fmt.Sprintf("since %s %d connections were refused, or idle ones closed, at the limit for one client or for all: "+
			"--ingress-max-connections, which is %d, raises it", t.connections.beginTime(), t.connections.count, connections))
	}
	if t.requests.lasts(now) {
		out = append(out, fmt.Sprintf("since %s %d requests of HTTP/2 or HTTP/3 were refused, since their client or all had too many under "+
			"way: --ingress-max-connections, which is %d, raises the limit", t.requests.beginTime(), t.requests.count, connections))
	}
	return out
}
