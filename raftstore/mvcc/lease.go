// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"bytes"
	"cmp"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// A Lease is a lease in the state machine. It has no expiry time, since the state machine has no clock: the leader
// decides when it expires.
type Lease struct {
	ID  int64
	TTL int64 // seconds, as granted
}

// leaseTable is written by the goroutine that applies commands, and read by any.
type leaseTable struct {
	mu   sync.RWMutex
	byID map[int64]*leaseState
}

type leaseState struct {
	ttl  int64
	keys map[string]struct{}
}

func newLeaseTable() *leaseTable { return &leaseTable{byID: make(map[int64]*leaseState)} }

func (t *leaseTable) has(id int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, ok := t.byID[id]
	return ok
}

func (t *leaseTable) attach(id int64, key []byte) {
	if id == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byID[id]; l != nil {
		l.keys[string(key)] = struct{}{}
	}
}

func (t *leaseTable) detach(id int64, key []byte) {
	if id == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byID[id]; l != nil {
		delete(l.keys, string(key))
	}
}

func (t *leaseTable) list() []Lease {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]Lease, 0, len(t.byID))
	for id, l := range t.byID {
		all = append(all, Lease{ID: id, TTL: l.ttl})
	}
	slices.SortFunc(all, func(a, b Lease) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// keys returns the keys attached to a lease, in order, and its TTL. It returns false if there is no such lease.
func (t *leaseTable) keys(id int64) ([][]byte, int64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := t.byID[id]
	if l == nil {
		return nil, 0, false
	}
	keys := make([][]byte, 0, len(l.keys))
	for k := range l.keys {
		keys = append(keys, []byte(k))
	}
	slices.SortFunc(keys, bytes.Compare)
	return keys, l.ttl, true
}

// Leases lists all leases by id.
func (v *View) Leases() []Lease { return v.leases }

// Lease returns the keys attached to a lease, in order, and the TTL in seconds that it was granted. Unlike all else in
// a view, these are of the present and not of the revision of the view.
func (v *View) Lease(id int64) (keys [][]byte, ttl int64, ok bool) { return v.shared.leases.keys(id) }

// HasLease says whether a lease exists at present.
func (v *View) HasLease(id int64) bool { return v.shared.leases.has(id) }

// applyGrant makes a lease. The proposer chooses the id, since the state machine has no randomness.
func (s *State) applyGrant(r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.ID == 0 || s.leases.has(r.ID) {
		return nil, rpctypes.ErrGRPCLeaseExist
	}
	s.leases.mu.Lock()
	s.leases.byID[r.ID] = &leaseState{ttl: r.TTL, keys: make(map[string]struct{})}
	s.leases.mu.Unlock()
	s.leaseList = nil
	return &pb.LeaseGrantResponse{Header: &pb.ResponseHeader{Revision: s.rev}, ID: r.ID, TTL: r.TTL}, nil
}

// applyRevoke removes a lease and, in one revision, every key attached to it.
func (s *State) applyRevoke(r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	keys, _, ok := s.leases.keys(r.ID)
	if !ok {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	w := s.beginWrite()
	for _, k := range keys {
		if v := s.get(k); v != nil {
			w.delete(v)
		}
	}
	s.leases.mu.Lock()
	delete(s.leases.byID, r.ID)
	s.leases.mu.Unlock()
	s.leaseList = nil
	return &pb.LeaseRevokeResponse{Header: &pb.ResponseHeader{Revision: w.finishWrite()}}, nil
}
