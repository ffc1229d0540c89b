// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/tidwall/btree"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/level"
)

// A View is the store at one revision, and allows reads at every older revision since the compaction. It does not
// change. Any number of goroutines may read it at once.
type View struct {
	keyspace
	history  []*Version
	rev      int64
	shared   *shared
	leases   []Lease
	sessions []session
	applied  uint64
	stats    Stats
}

// Stats says how much the store held when the view was made. Bytes are those
// of keys and values plus a fixed overhead for each version.
type Stats struct {
	Keys       int64 // keys that exist
	LiveBytes  int64 // bytes of their current versions
	TotalBytes int64 // bytes of all versions, history included
	Versions   int64 // versions in the history window
}

// HistoryBytes returns how many bytes compaction can free: those of replaced versions and of deletion marks.
func (s Stats) HistoryBytes() int64 { return s.TotalBytes - s.LiveBytes }

// Revision returns the view's newest revision.
func (v *View) Revision() int64 { return v.rev }

// Applied returns the index of the last raft entry whose commands are in the view, 0 if there is none.
func (v *View) Applied() uint64 { return v.applied }

// Level returns the cluster's level that is stored in the view.
func (v *View) Level() int {
	stored := level.First
	v.Walk([]byte(level.Key), nil, v.rev, func(at *Version) bool {
		if n, ok := level.Parse(string(at.kv.Value)); ok {
			stored = n
		}
		return true
	})
	return stored
}

// Compacted returns the oldest revision that can still be read, 0 before the first compaction. It changes even for a
// view that was made earlier.
func (v *View) Compacted() int64 { return v.shared.compacted.Load() }

// Stats returns the sizes at the time when the view was made.
func (v *View) Stats() Stats { return v.stats }

// History returns the versions written at revision from and later, in order. The caller must not change the slice.
// Afterwards it has to compare Compacted with from: if Compacted is larger, versions may be missing.
func (v *View) History(from int64) []*Version {
	return v.history[search(v.history, from):]
}

// Range answers a read. Errors are etcd's: the revision is compacted, or does not exist yet.
func (v *View) Range(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return rangeIn(&v.keyspace, v.rev, &v.shared.compacted, r)
}

// Walk calls fn for each key in [key, end) at the revision, in order, until fn returns false. The revision must be
// readable. A caller that reads an old revision has to check Compacted afterwards.
func (v *View) Walk(key, end []byte, rev int64, fn func(*Version) bool) {
	walk(v.tree, key, end, rev, fn)
}

// CheckRevision returns the revision at which a read of rev is done (0 means the newest), or etcd's error if that
// cannot be read.
func (v *View) CheckRevision(rev int64) (int64, error) {
	return checkRevision(rev, v.rev, v.shared.compacted.Load())
}

func checkRevision(rev, current, compacted int64) (int64, error) {
	switch {
	case rev > current:
		return 0, rpctypes.ErrGRPCFutureRev
	case rev <= 0:
		return current, nil
	case rev < compacted:
		return 0, rpctypes.ErrGRPCCompacted
	}
	return rev, nil
}

func walk(tree *btree.BTreeG[*Version], key, end []byte, rev int64, fn func(*Version) bool) {
	if len(end) == 0 {
		p := pivot(key)
		v, _ := tree.Get(p)
		release(p)
		if v = v.at(rev); v != nil {
			fn(v)
		}
		return
	}
	ascend(tree, key, end, func(v *Version) bool {
		if v = v.at(rev); v == nil {
			return true
		}
		return fn(v)
	})
}

// ascend calls fn with the newest version of every key in [key, end), deleted keys included, until fn returns false. An
// end of one zero byte means all keys from key on, as in etcd.
func ascend(tree *btree.BTreeG[*Version], key, end []byte, fn func(*Version) bool) {
	open := isOpenEnd(end)
	p := pivot(key)
	tree.Ascend(p, func(v *Version) bool {
		if !open && bytes.Compare(v.kv.Key, end) >= 0 {
			return false
		}
		return fn(v)
	})
	release(p)
}

func isOpenEnd(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// Hash returns a checksum of every key and value at a readable revision, with their revisions. It is equal on all
// servers. A caller that hashes an old revision has to check Compacted afterwards.
func (v *View) Hash(rev int64) uint32 {
	sum := crc32.New(castagnoli)
	var n []byte
	walk(v.tree, []byte{0}, []byte{0}, rev, func(ver *Version) bool {
		kv := &ver.kv
		n = binary.LittleEndian.AppendUint64(n[:0], uint64(len(kv.Key)))
		for _, i := range []int64{int64(len(kv.Value)), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease} {
			n = binary.LittleEndian.AppendUint64(n, uint64(i))
		}
		sum.Write(n)
		sum.Write(kv.Key)
		sum.Write(kv.Value)
		return true
	})
	return sum.Sum32()
}
