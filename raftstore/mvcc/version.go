// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A Version is one version of one key: a value, or the mark of its deletion.
// It never changes once published, save that compaction may cut prev.
//
// The protobuf message is embedded rather than built for each read, so that a
// list of N keys allocates nothing per key. The caller must not
// change it.
type Version struct {
	kv mvccpb.KeyValue
	// prev is the version that this one replaced. Compaction sets it to nil
	// when no readable revision can need it.
	prev atomic.Pointer[Version]
}

// KV returns the version as etcd's message. A deletion has only the key and
// the revision. Read only.
func (v *Version) KV() *mvccpb.KeyValue { return &v.kv }

// Revision is the store revision that wrote this version.
func (v *Version) Revision() int64 { return v.kv.ModRevision }

// Deleted says whether this version marks a deletion.
func (v *Version) Deleted() bool { return v.kv.Version == 0 }

// Before returns what the key held before the revision that wrote v: nil if
// it did not exist, or if compaction dropped it.
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

// at returns the version of the key that was current at rev, or nil.
func (v *Version) at(rev int64) *Version {
	for v != nil && v.kv.ModRevision > rev {
		v = v.prev.Load()
	}
	if v == nil || v.Deleted() {
		return nil
	}
	return v
}

// Size is about what the version costs in memory, in bytes.
func (v *Version) Size() int64 {
	const overhead = 128 + 16 // the struct, and its share of a tree node
	return int64(len(v.kv.Key)+len(v.kv.Value)) + overhead
}

// HistorySize is how many bytes of history a version is the reason for: those
// of the version that it replaced, as far as that is still held, and its own if
// it marks a deletion. A compaction to its revision frees them.
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

// pivots saves an allocation for each search of the tree.
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
