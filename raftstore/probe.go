// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/election"
)

// A process with a stalled disk still replies. So before a server counts for a majority or leads, it has to store
// something: the leader writes an entry, and counts the servers that confirm it. In a quiet cluster nothing else shows
// a stalled disk. From then on a server that does not confirm the entry lacks it. [peer.Transport.Stored] reports that,
// and no second entry is needed.

const (
	// storesWithin is how long a server may take to flush the entry of a storage probe, in addition to two of the
	// leader's flushes.
	storesWithin = 3 * time.Second
	// probeTick is the interval at which a storage probe checks what was confirmed.
	probeTick = 2 * time.Millisecond
)

// storing says whether a member has stored what was written since a storage probe began.
type storing func(raft.ServerID) bool

func (stores storing) count(members []raft.Server) (n int) {
	for _, m := range members {
		if stores(m.ID) {
			n++
		}
	}
	return n
}

func (stores storing) majorityOf(voters []raft.Server) bool {
	return stores.count(voters) > len(voters)/2
}

// storageProbe writes an entry and waits for members to store it. It returns when enough says that these are enough,
// when all members that seemed to store before have stored it, or when ctx ends. At the latest it returns after
// storesWithin and two flushes of this server: a flush under way delays that of the entry. Only a leader learns which
// members store. A nil enough means all.
func (s *steward) storageProbe(ctx context.Context, enough func(storing) bool) storing {
	term, newest := s.raft.CurrentTerm(), s.raft.LastIndex()
	presumedStoring := s.presumedStoring()
	stores := storing(func(id raft.ServerID) bool {
		if id == s.id {
			return s.raft.LastIndex() > newest && s.raft.CurrentTerm() == term
		}
		index, _ := s.Stored(id, term)
		return index > newest
	})
	within := storesWithin + 2*min(s.dir.FlushDuration(), election.SlowestFlush)
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	written := make(chan error, 1) // buffered: the caller may have returned
	if !s.spawn(func() { written <- s.await(s.raft.Barrier(within)) }) {
		return stores
	}
	tick := time.NewTicker(probeTick)
	defer tick.Stop()
	for (enough == nil || !enough(stores)) && stores.count(presumedStoring) < len(presumedStoring) {
		select {
		case <-ctx.Done():
			return stores
		case err := <-written:
			if err != nil { // this server leads no more
				return stores
			}
			written = nil
		case <-tick.C:
		}
	}
	return stores
}

// presumedStoring returns the members that seem to store: this server, and those that lack no entry or confirmed one a
// moment ago. A member that has confirmed nothing in this term yet is included, since the leader may be new.
func (s *steward) presumedStoring() []raft.Server {
	term := s.raft.CurrentTerm()
	return slices.DeleteFunc(slices.Clone(s.raft.GetConfiguration().Configuration().Servers), func(m raft.Server) bool {
		_, at := s.Stored(m.ID, term)
		return m.ID != s.id && !at.IsZero() && time.Since(at) >= healthyWithin
	})
}

// barrier returns when all that this leader has appended is committed.
func (r *replica) barrier(ctx context.Context) error {
	done := make(chan error, 1) // buffered: the caller may have returned
	if !r.spawn(func() { done <- r.await(r.raft.Barrier(0)) }) {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return contextError(ctx)
	}
}
