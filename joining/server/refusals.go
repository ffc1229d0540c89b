// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// refusalLogs is how often one source has a line in the log. A machine that is refused keeps trying, and a client
// that means harm would fill the disk.
const refusalLogs = 10 * time.Second

// refusals bounds the lines about refusals. Its zero value is ready.
type refusals struct {
	mu      sync.Mutex
	sources map[netip.Addr]*refused
}

type refused struct {
	last  time.Time
	since int // refusals without a line since then
}

// count says whether a refusal is to have a line, and how many of the same source had none since its last.
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
		r.sources[source] = &refused{last: now}
		return 0, true
	case now.Sub(s.last) < refusalLogs:
		s.since++
		return 0, false
	}
	since = s.since
	*s = refused{last: now}
	return since, true
}
