// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hashicorp/raft"
)

// cacheSize is the default size of CachedLog in bytes.
const cacheSize = 8 << 20

// unreadFraction decides when a cache has no readers. When a quarter (1/unreadFraction) of the cache's size was written
// and nothing was read, the cache drops all entries. It keeps no new ones until one is read. One write of raft is
// almost always smaller, so a reader that follows the log reads in time.
const unreadFraction = 4

// CachedLog returns the log with its newest entries kept in memory, up to maxBytes; 0 means 8 MiB. A leader reads
// entries back for each follower, almost always the newest, and a follower reads what it applies. A server without
// others reads none: its cache keeps no more than a quarter of maxBytes, and only until that much was written without a
// read.
//
// The entries' Data and Extensions are those that raft passed in, not copies: they must not be changed. All writes must
// go through the cache. It is the same for every call.
func (d *Dir) CachedLog(maxBytes int64) raft.LogStore {
	if maxBytes == 0 {
		maxBytes = cacheSize
	}
	d.cache.CompareAndSwap(nil, &cachedLog{Log: d.Log, maxBytes: maxBytes, writing: newWriteLock()})
	return d.cache.Load()
}

// cachedLog keeps the entries that StoreLogs stored, without gaps. Each cached entry is in the log and is equal to the
// log's. An entry is removed from the cache before the log deletes it, and added after the log has stored it.
type cachedLog struct {
	*Log
	maxBytes int64

	writing writeLock // held over a write to the log and the change of the cache that follows from it

	mu         sync.RWMutex // guards the fields below
	firstIndex uint64       // index of entries[0]
	entries    []raft.Log
	bytes      int64

	unreadBytes atomic.Int64 // bytes that were written since an entry was last read
}

var (
	_ raft.LogStore          = (*cachedLog)(nil)
	_ raft.MonotonicLogStore = (*cachedLog)(nil)
)

// memorySize returns how many bytes an entry uses in memory.
func memorySize(e *raft.Log) int64 {
	return int64(unsafe.Sizeof(*e)) + int64(len(e.Data)+len(e.Extensions))
}

func (c *cachedLog) GetLog(index uint64, out *raft.Log) error {
	if c.unreadBytes.Load() != 0 { // concurrent readers need not write it each time
		c.unreadBytes.Store(0)
	}
	c.mu.RLock()
	hit := index >= c.firstIndex && index-c.firstIndex < uint64(len(c.entries))
	if hit {
		*out = c.entries[index-c.firstIndex]
	}
	c.mu.RUnlock()
	if hit {
		return nil
	}
	return c.Log.GetLog(index, out)
}

func (c *cachedLog) StoreLog(entry *raft.Log) error { return c.StoreLogs([]*raft.Log{entry}) }

func (c *cachedLog) StoreLogs(entries []*raft.Log) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.Log.StoreLogs(entries); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		c.addEntry(e)
	}
	return nil
}

// addEntry adds an entry, which the log has stored, and drops old ones to make room for it.
func (c *cachedLog) addEntry(e *raft.Log) {
	n := memorySize(e)
	wanted := n <= c.maxBytes && c.unreadBytes.Add(n)-n < c.maxBytes/unreadFraction
	if !wanted || len(c.entries) > 0 && e.Index != c.firstIndex+uint64(len(c.entries)) {
		c.evictUpTo(len(c.entries))
	}
	if !wanted {
		return
	}
	drop := 0
	for free := c.maxBytes - c.bytes; free < n; drop++ {
		free += memorySize(&c.entries[drop])
	}
	c.evictUpTo(drop)
	if len(c.entries) == 0 {
		c.firstIndex = e.Index
	}
	// It is a copy, since the leader's entry is part of a larger object.
	c.entries = append(c.entries, *e)
	c.bytes += n
}

// evictUpTo drops the oldest n entries. Their places in memory are freed when append next moves the slice.
func (c *cachedLog) evictUpTo(n int) {
	for i := range n {
		c.bytes -= memorySize(&c.entries[i])
		c.entries[i] = raft.Log{} // otherwise it would stay reachable
	}
	c.firstIndex, c.entries = c.firstIndex+uint64(n), c.entries[n:]
	if len(c.entries) == 0 {
		c.entries = nil
	}
}

// evictFrom drops all entries after the first n.
func (c *cachedLog) evictFrom(n int) {
	for i := n; i < len(c.entries); i++ {
		c.bytes -= memorySize(&c.entries[i])
		c.entries[i] = raft.Log{}
	}
	c.entries = c.entries[:n]
}

func (c *cachedLog) DeleteRange(from, to uint64) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.evict(from, c.beforeTrail(to)) // only this function deletes from the log, so the log ends with the same entries
	return c.Log.DeleteRange(from, to)
}

// evict drops the entries in a range. If the range lies in the middle, it drops all.
func (c *cachedLog) evict(from, to uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) == 0 || from > to {
		return
	}
	last := c.firstIndex + uint64(len(c.entries)) - 1
	switch {
	case to < c.firstIndex || from > last:
	case to >= last && from > c.firstIndex:
		c.evictFrom(int(from - c.firstIndex))
	case to < last && from <= c.firstIndex:
		c.evictUpTo(int(to - c.firstIndex + 1))
	default:
		c.evictUpTo(len(c.entries))
	}
}
