// SPDX-License-Identifier: Apache-2.0

package mvcc

import (
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func (s *State) applyCompact(r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	switch {
	case r.Revision <= s.compacted.Load():
		return nil, rpctypes.ErrGRPCCompacted
	case r.Revision > s.rev:
		return nil, rpctypes.ErrGRPCFutureRev
	}
	s.compacted.Store(r.Revision)
	s.Prune()
	return &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: s.rev}}, nil
}

// Prune frees what compaction made unreachable. While a snapshot is being written, which reads the chains of versions,
// it does nothing, unless there is more history than the snapshot may keep. What is readable does not depend on when
// Prune runs.
//
// Versions written at the compaction revision itself stay in the history, since a watch may start there. The versions
// that they replaced go: as in etcd, such a watch gets no previous values.
func (s *State) Prune() {
	to := s.compacted.Load()
	if to == s.pruned {
		return
	}
	s.pruning.Lock()
	defer s.pruning.Unlock()
	if !s.overtakePins(s.total - s.live) {
		return
	}
	for _, v := range s.history[search(s.history, s.pruned+1):search(s.history, to+1)] {
		s.dropPrevious(v)
		if v.Deleted() && s.lookup(v.kv.Key) == v {
			s.remove(v)
			s.total -= v.Size()
		}
	}
	s.pruned = to
	// The slice is copied: views keep the old one, and sharing its memory would keep the dropped front reachable.
	kept := s.history[search(s.history, to):]
	s.history = append(make([]*Version, 0, len(kept)+64), kept...)
	s.existence = s.existence.keepSince(to)
}

func (s *State) dropPrevious(v *Version) {
	if p := v.prev.Swap(nil); p != nil {
		s.total -= p.Size()
	}
}

// search returns the index of the first version at rev or later.
func search(history []*Version, rev int64) int {
	return sort.Search(len(history), func(i int) bool { return history[i].kv.ModRevision >= rev })
}

// Leap moves the revision ahead by n, or to the revision to if that is further. It drops all history: every older
// revision is compacted. Keys keep the revisions at which they were written. Leap is for a state that replaces another
// one, with a new log whose entries come after index. Sessions are dropped.
func (s *State) Leap(n, to int64, index uint64) {
	s.applied, s.sessions, s.frozenSessions = index, nil, nil
	s.rev = max(s.rev+n, to)
	s.compacted.Store(s.rev)
	s.Prune()
}
