// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"log/slog"
	"sync"
	"time"
)

// repeatInterval is the minimum time between two lines with the same frequent message.
const repeatInterval = 10 * time.Second

// frequentMessages has upstream's log messages that may repeat very often without new information. Each is logged at
// most once every repeatInterval.
var frequentMessages = map[string]bool{
	// The kubelet's: any client can cause it with each request, without an identity. The API server limits its own
	// lines.
	"Unable to authenticate the request due to an error": true,
	// Each of 130 watches ends with this message when a server loses its leader.
	"watch chan error: etcdserver: no leader": true,
}

// repeats limits the number of lines with frequent messages, so that these cannot displace all other lines from the log
// files. Its zero value is ready.
type repeats struct {
	mu    sync.Mutex
	lines map[string]repeatCount
}

type repeatCount struct {
	lastWritten time.Time
	dropped     int // number of dropped messages since then
}

// bound says whether the record is to be dropped. To a record that is not, it adds the number of equal messages that
// were dropped since the last line.
func (b *repeats) bound(r *slog.Record) (drop bool) {
	if !frequentMessages[r.Message] {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	line, known := b.lines[r.Message]
	if known && r.Time.Sub(line.lastWritten).Abs() < repeatInterval {
		line.dropped++
		b.lines[r.Message] = line
		return true
	}
	if b.lines == nil {
		b.lines = map[string]repeatCount{}
	}
	b.lines[r.Message] = repeatCount{lastWritten: r.Time}
	if line.dropped > 0 {
		r.AddAttrs(slog.Int("repeated", line.dropped))
	}
	return false
}
