// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/coracle-k8s/coracle/internal/level"
)

// treeDegree is the degree of the B-trees. It was the fastest of those that were measured, with 100,000 keys of 1 KB.
const treeDegree = 16

// State is the state machine. Only one goroutine may call its methods. All others read Views.
type State struct {
	keyspace
	// history holds every version written since the compaction revision, in the order of writing. Views alias it: it is
	// appended to or replaced, but never changed in place.
	history []*Version
	rev     int64
	pruned  int64
	*shared
	leaseList []Lease // leases as of the last Freeze; nil if they have changed since

	applied        uint64    // index of the last raft entry that was applied
	sessions       []session // by id
	frozenSessions []session // sessions as of the last Freeze; nil if they have changed since

	keys  int64 // number of existing keys
	live  int64 // bytes of the existing keys' versions
	total int64 // bytes of all versions held
}

// shared is the data that the state and its Views share.
type shared struct {
	// compacted is checked again after a read at an old revision, because pruning is concurrent with readers.
	compacted atomic.Int64
	leases    *leaseTable

	pruning sync.Mutex        // held while pruning
	pins    map[*pin]struct{} // of snapshots being written; guarded by pruning
}

// New returns an empty store at revision 1, as etcd starts.
func New() *State {
	return &State{keyspace: newKeyspace(), rev: 1, shared: &shared{leases: newLeaseTable(), pins: make(map[*pin]struct{})}}
}

func newTree() *btree.BTreeG[*Version] {
	return btree.NewBTreeGOptions(less, btree.Options{NoLocks: true, Degree: treeDegree})
}

// Apply runs a request without conditions, outside any raft entry.
func (s *State) Apply(req Request) Result { return s.apply(req, 0) }

// apply runs a request. at becomes the id of the session if the request opens one.
func (s *State) apply(req Request, at uint64) Result {
	var resp any
	var err error
	switch r := req.(type) {
	case *pb.PutRequest:
		resp, err = s.applyPut(r)
	case *pb.DeleteRangeRequest:
		resp, err = s.applyDelete(r)
	case *pb.TxnRequest:
		resp, err = s.applyTxn(r)
	case *pb.CompactionRequest:
		resp, err = s.applyCompact(r)
	case *pb.LeaseGrantRequest:
		resp, err = s.applyGrant(r)
	case *pb.LeaseRevokeRequest:
		resp, err = s.applyRevoke(r)
	case *wrapperspb.StringValue:
		resp, err = s.openSession(r, at)
	default:
		panic(fmt.Sprintf("mvcc: no such command %T", req))
	}
	if err != nil {
		return Result{Err: err}
	}
	return Result{Response: resp}
}

// A write collects the effects of one command. All share one revision. The revision is used only if there is any
// effect.
type write struct {
	s       *State
	rev     int64
	changed bool
}

func (s *State) beginWrite() *write { return &write{s: s, rev: s.rev + 1} }

// finishWrite sets the store's revision to the write's if there was any effect, and returns the store's revision.
func (w *write) finishWrite() int64 {
	if w.changed {
		w.s.rev = w.rev
	}
	return w.s.rev
}

// current returns the revision for a response inside the write.
func (w *write) current() int64 {
	if w.changed {
		return w.rev
	}
	return w.s.rev
}

// lookup returns the key's newest version, which may be a deletion mark.
func (s *State) lookup(key []byte) *Version {
	p := pivot(key)
	defer release(p)
	v, _ := s.tree.Get(p)
	return v
}

// get returns the key's newest version, or nil if the key does not exist.
func (s *State) get(key []byte) *Version {
	if v := s.lookup(key); v != nil && !v.Deleted() {
		return v
	}
	return nil
}

func (s *State) applyPut(r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := s.checkPut(r); err != nil {
		return nil, err
	}
	w := s.beginWrite()
	resp := w.put(r)
	w.finishWrite()
	return resp, nil
}

func (s *State) checkPut(r *pb.PutRequest) error {
	if (r.IgnoreValue || r.IgnoreLease) && s.get(r.Key) == nil {
		return rpctypes.ErrGRPCKeyNotFound
	}
	if r.Lease != 0 && !s.leases.has(r.Lease) {
		return rpctypes.ErrGRPCLeaseNotFound
	}
	return nil
}

func (w *write) put(r *pb.PutRequest) *pb.PutResponse {
	s := w.s
	w.changed = true
	old := s.lookup(r.Key)
	v := &Version{}
	v.kv.Key, v.kv.Value, v.kv.Lease = r.Key, r.Value, r.Lease
	v.kv.CreateRevision, v.kv.ModRevision, v.kv.Version = w.rev, w.rev, 1
	resp := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: w.rev}}
	if old != nil && !old.Deleted() {
		v.kv.Key = old.kv.Key // so that all versions of the key share one copy of it
		v.kv.CreateRevision, v.kv.Version = old.kv.CreateRevision, old.kv.Version+1
		if r.IgnoreValue {
			v.kv.Value = old.kv.Value
		}
		if r.IgnoreLease {
			v.kv.Lease = old.kv.Lease
		}
		if r.PrevKv {
			resp.PrevKv = old.KV()
		}
	}
	s.install(v, old)
	return resp
}

func (s *State) applyDelete(r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	w := s.beginWrite()
	resp := w.deleteRange(r)
	resp.Header = &pb.ResponseHeader{Revision: w.finishWrite()}
	return resp, nil
}

func (w *write) deleteRange(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	s := w.s
	var found []*Version
	take := func(v *Version) bool {
		if !v.Deleted() && !v.storesLevel() {
			found = append(found, v)
		}
		return true
	}
	if len(r.RangeEnd) > 0 {
		ascend(s.tree, r.Key, r.RangeEnd, take)
	} else if v := s.get(r.Key); v != nil {
		take(v)
	}
	resp := &pb.DeleteRangeResponse{Deleted: int64(len(found))}
	for _, v := range found {
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, v.KV())
		}
		w.delete(v)
	}
	resp.Header = &pb.ResponseHeader{Revision: w.current()}
	return resp
}

// storesLevel says whether a key's version stores a level after the first one. No deletion removes that: one that was
// checked before the level was raised may be run afterwards.
func (v *Version) storesLevel() bool {
	if string(v.kv.Key) != level.Key {
		return false
	}
	stored, ok := level.Parse(string(v.kv.Value))
	return ok && stored > level.First
}

func (w *write) delete(old *Version) {
	w.changed = true
	v := &Version{}
	v.kv.Key, v.kv.ModRevision = old.kv.Key, w.rev
	w.s.install(v, old)
}

// install makes v the key's newest version. old is the version before, or nil.
func (s *State) install(v, old *Version) {
	if old != nil {
		v.prev.Store(old)
		if !old.Deleted() {
			s.keys--
			s.live -= old.Size()
			s.leases.detach(old.kv.Lease, old.kv.Key)
		}
	}
	if !v.Deleted() {
		s.keys++
		s.live += v.Size()
		s.leases.attach(v.kv.Lease, v.kv.Key)
	}
	s.total += v.Size()
	s.keyspace.set(v, old != nil && !old.Deleted())
	s.history = append(s.history, v)
}

// Freeze returns the present state for readers. It should be called once for a batch of commands, since the first write
// after it copies a path of the tree.
func (s *State) Freeze() *View {
	if s.leaseList == nil {
		s.leaseList = s.leases.list()
	}
	return &View{
		keyspace: s.keyspace.freeze(), history: s.history, rev: s.rev, shared: s.shared,
		leases: s.leaseList, sessions: s.freezeSessions(), applied: s.applied,
		stats: Stats{Keys: s.keys, LiveBytes: s.live, TotalBytes: s.total, Versions: int64(len(s.history))},
	}
}
