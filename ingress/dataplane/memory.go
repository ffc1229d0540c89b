// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

// memoryBudget measures which fraction of its memory limit the process uses. Clients are refused before the kernel ends
// the process and with it all connections. The memory of a connection differs by a factor of five, from an idle one to
// one over TLS whose client does not read. The number of connections alone is thus no limit.
type memoryBudget struct {
	limit   int64 // GOMEMLIMIT in bytes; 0 for none
	readAt  atomic.Int64
	used    atomic.Int64
	read    func() int64
	collect func() // ends when no garbage is left that was there at its begin

	mu          sync.Mutex // held while collect runs
	nextCollect time.Time
}

const (
	// readEvery is the greatest age of the measured value. Connections are closed for lack of memory as often at most.
	readEvery = 10 * time.Millisecond
	// collectEvery is the shortest time between two calls of collect. collectShare limits their part of the time: one
	// in so many.
	collectEvery, collectShare = 500 * time.Millisecond, 20
)

func newMemoryBudget() *memoryBudget {
	m := &memoryBudget{read: runtimeMemory, collect: runtime.GC}
	if most := debug.SetMemoryLimit(-1); most < math.MaxInt64 {
		m.limit = most
	}
	return m
}

// runtimeMemory returns the number of bytes that GOMEMLIMIT limits, without the free pages of the heap: the runtime
// uses these first, and returns them to the kernel before it exceeds GOMEMLIMIT.
func runtimeMemory() int64 {
	samples := [3]metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(samples[:])
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64() - samples[2].Value.Uint64())
}

// aboveAfterGC reports whether more than so many sixteenths of the limit are in use, without garbage. Garbage stays for
// minutes after a burst. If exceeds is true, aboveAfterGC thus collects garbage first. It does not collect in each
// call, since a collection takes processor time and the caller waits for it.
func (m *memoryBudget) aboveAfterGC(sixteenths int64) bool {
	if !m.exceeds(sixteenths) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if began := time.Now(); !began.Before(m.nextCollect) {
		m.collect()
		took := time.Since(began)
		m.nextCollect = began.Add(max(collectEvery, collectShare*took))
		m.used.Store(m.read())
	}
	return m.exceeds(sixteenths)
}

// exceeds reports whether more than so many sixteenths of the limit are in use, with garbage.
func (m *memoryBudget) exceeds(sixteenths int64) bool {
	if m.limit == 0 {
		return false
	}
	if claimMoment(&m.readAt) {
		m.used.Store(m.read())
	}
	return m.used.Load() > m.limit/16*sixteenths
}

// claimMoment reports whether the last action, at the time at, was readEvery ago or earlier. It then sets at to now.
// Only one of several callers gets true.
func claimMoment(at *atomic.Int64) bool {
	now, last := time.Now().UnixNano(), at.Load()
	return now >= last+int64(readEvery) && at.CompareAndSwap(last, now)
}

// Fractions of GOMEMLIMIT, in sixteenths. The kernel ends the process at 21 of them.
const (
	// copiesLimited is the use above which copies of bodies take small buffers.
	copiesLimited = 8
	// sourcesLimited is the use above which sources with many connections get no more. sourcesShed is the use above
	// which they lose some.
	sourcesLimited, sourcesShed = 11, 15
	// requestsRefused is the use above which no request is accepted, and nothing more is received.
	requestsRefused = 17
)
