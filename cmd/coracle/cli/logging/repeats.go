// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"log/slog"
	"sync"
	"time"
)

// repeatInterval is how often a message of frequent has a line.
const repeatInterval = 10 * time.Second

// frequent are messages of upstream's of which one tells as much as a hundred.
var frequent = map[string]bool{
	// Any client can cause these with each request that it sends, without an identity.
	"Unable to authenticate the request":                 true, // the API server's
	"Unable to authenticate the request due to an error": true, // the kubelet's
	// Each of 130 watches ends with this when a server loses its leader.
	"watch chan error: etcdserver: no leader": true,
}

// repeats bounds the lines of frequent messages, so that they cannot drive all other lines out of the log files. Its
// zero value is ready.
type repeats struct {
	mu    sync.Mutex
	lines map[string]repeated
}

type repeated struct {
	last  time.Time
	since int // messages without a line since then
}

// bound says whether the record is to be left out, and adds to one that is not how many of the same message were since
// its last line.
func (b *repeats) bound(r *slog.Record) (drop bool) {
	if !frequent[r.Message] {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	line, known := b.lines[r.Message]
	if known && r.Time.Sub(line.last).Abs() < repeatInterval {
		line.since++
		b.lines[r.Message] = line
		return true
	}
	if b.lines == nil {
		b.lines = map[string]repeated{}
	}
	b.lines[r.Message] = repeated{last: r.Time}
	if line.since > 0 {
		r.AddAttrs(slog.Int("repeated", line.since))
	}
	return false
}
