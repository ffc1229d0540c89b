// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A Version is one version of one key: a value, or a deletion mark. It never changes once published, except that
// compaction may set prev to nil.
//
// The protobuf message is embedded and not built for each read, so that a list of N keys allocates nothing per key.
// Callers must not change it.
type Version struct {
	kv mvccpb.KeyValue
	// prev is the version that this one replaced. Compaction sets it to nil when no readable revision needs it.
	prev atomic.Pointer[Version]
}

// KV returns the version as etcd's message. A deletion has only the key and the revision. Read only.
func (v *Version) KV() *mvccpb.KeyValue { return &v.kv }

// Revision returns the store revision that wrote this version.
func (v *Version) Revision() int64 { return v.kv.ModRevision }

// Deleted says whether this version marks a deletion.
func (v *Version) Deleted() bool { return v.kv.Version == 0 }

// Before returns the key's value before the revision that wrote v. It returns nil if the key did not exist, or if
// compaction has dropped that version.
func (v *Version) Before() *mvccpb.KeyValue {
	p := v.prev.Load()
	for p != nil && p.kv.ModRevision == v.kv.ModRevision {
		p = p.prev.Load() // written twice within one transaction
	}
	if p == nil || p.Deleted() {
		return nil
	}
	return &p.kv
}

// at returns the version that was the newest of its key at rev, or nil if the key did not exist then.
func (v *Version) at(rev int64) *Version {
	for v != nil && v.kv.ModRevision > rev {
		v = v.prev.Load()
	}
	if v == nil || v.Deleted() {
		return nil
	}
	return v
}

// Size returns about how many bytes the version uses in memory.
func (v *Version) Size() int64 { return sizeOf(v.kv.Key, v.kv.Value) }

func sizeOf(key, value []byte) int64 {
	const overhead = 128 + 16 // the struct, and its share of a tree node
	return int64(len(key)+len(value)) + overhead
}

// HistorySize returns how many bytes of history exist because of this version: those of the version that it replaced,
// if that is still held, and its own if it is a deletion mark. A compaction to its revision frees them.
func (v *Version) HistorySize() int64 {
	var size int64
	if p := v.prev.Load(); p != nil {
		size = p.Size()
	}
	if v.Deleted() {
		size += v.Size()
	}
	return size
}

func less(a, b *Version) bool { return bytes.Compare(a.kv.Key, b.kv.Key) < 0 }

// pivots holds versions for searches of the tree, which saves an allocation for each search.
var pivots = sync.Pool{New: func() any { return new(Version) }}

func pivot(key []byte) *Version {
	p := pivots.Get().(*Version)
	p.kv.Key = key
	return p
}

func release(p *Version) {
	p.kv.Key = nil
	pivots.Put(p)
}
