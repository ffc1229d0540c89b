// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// refusalLogs is how often a refusal of one source is logged. A refused machine keeps trying, and a malicious client
// would fill the disk.
const refusalLogs = 10 * time.Second

// refusals limits the log lines about refusals. Its zero value is ready.
type refusals struct {
	mu      sync.Mutex
	sources map[netip.Addr]*refused
}

type refused struct {
	lastLogged time.Time
	unlogged   int // refusals since then that were not logged
}

// count reports whether a refusal is to be logged, and how many of the same source were not since the last one.
func (r *refusals) count(from net.Addr, now time.Time) (since int, line bool) {
	source := sourceOf(from)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sources[source]
	switch {
	case s == nil:
		if r.sources == nil || len(r.sources) >= maxSources {
			r.sources = map[netip.Addr]*refused{}
		}
		r.sources[source] = &refused{lastLogged: now}
		return 0, true
	case now.Sub(s.lastLogged) < refusalLogs:
		s.unlogged++
		return 0, false
	}
	since = s.unlogged
	*s = refused{lastLogged: now}
	return since, true
}
