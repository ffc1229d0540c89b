// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/netip"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// recordInterval is the period of a recordLimit.
	recordInterval = time.Minute
	// maxRecordText limits each text of a record that a client without an identity chooses, in bytes.
	maxRecordText = 256
)

// recordLimit limits the records of clients without an identity: lines of the log, or events of the audit log. The
// first ones of each source and interval are kept, so that failed logins stay visible. What is left out is counted.
type recordLimit struct {
	// perSource and total are how many records are kept in an interval, of one source and of all.
	perSource, total int
	// report is called with the number of records that were left out. It is called once in an interval at most, and not
	// at all when none were.
	report func(leftOut int)

	mu       sync.Mutex
	began    time.Time // of the interval
	recorded int
	sources  map[netip.Prefix]int // numbers of kept records, so it has no more than total
	leftOut  int
	timer    *time.Timer // of the report; nil when nothing is left out
}

func (l *recordLimit) allow(source netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.began) >= recordInterval {
		l.began, l.recorded, l.sources = now, 0, map[netip.Prefix]int{}
	}
	if l.recorded >= l.total || l.sources[source] >= l.perSource {
		l.leftOut++
		if l.timer == nil {
			l.timer = time.AfterFunc(recordInterval, l.flush)
		}
		return false
	}
	l.recorded++
	l.sources[source]++
	return true
}

// flush reports what was left out so far.
func (l *recordLimit) flush() {
	l.mu.Lock()
	n := l.leftOut
	if l.timer != nil {
		l.timer.Stop()
	}
	l.leftOut, l.timer = 0, nil
	l.mu.Unlock()
	if n > 0 {
		l.report(n)
	}
}

// sourceOf returns the network from which one client can choose its addresses: an IPv4 address, or a /64 of IPv6. The
// text is an address with or without a port. All others are one source.
func sourceOf(remote string) netip.Prefix {
	address, err := netip.ParseAddr(remote)
	if err != nil {
		with, err := netip.ParseAddrPort(remote)
		if err != nil {
			return netip.Prefix{}
		}
		address = with.Addr()
	}
	address = address.Unmap().WithZone("")
	prefix, _ := address.Prefix(min(address.BitLen(), 64)) // does not fail for these lengths
	return prefix
}

// shortenRecord limits a text to maxRecordText bytes.
func shortenRecord(s string) string { return truncate.Text(s, maxRecordText) }
