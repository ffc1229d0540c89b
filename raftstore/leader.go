// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// A leader is the server that leads the cluster, as this server knows it.
type leader struct {
	ID      raft.ServerID
	Address raft.ServerAddress
	Term    uint64
	// Self says that it is this server, and that it may serve: it has applied
	// everything that earlier terms committed.
	Self bool
}

// known says whether there is one at all.
func (l leader) known() bool { return l.Self || l.Address != "" }

// errMoved says that the leader to whom something was sent leads no longer, as
// far as this server knows.
var errMoved = errors.New("raftstore: the leadership has moved")

// leaderBoard holds the present leader and tells those who wait for another.
type leaderBoard struct {
	mu      sync.Mutex
	now     leader
	changes uint64
	changed chan struct{} // closed and replaced at each change
	// present ends when there has been no leader for leaderlessAfter, and is
	// replaced when there is one.
	present    context.Context
	endPresent context.CancelFunc

	refreshing sync.Mutex    // one look at who leads at a time
	heard      timers.Signal // the transport heard another leader

	// without is what the others said when they were asked last and had a leader; nil if they had none, or this server
	// knows one.
	without atomic.Pointer[reportedLeader]
	counted atomic.Bool // see Health.MembershipConfirmed

	closing context.Context // ends when the store closes
}

// leaderlessAfter is how long there may be no leader before streams that require
// one end. etcd waits three of its election timeouts, 3 s.
const leaderlessAfter = 3 * time.Second

// askedAgainAfter is how often the others are asked, while there is none, whether they
// have one without this server.
const askedAgainAfter = 10 * time.Second

func newLeaderBoard(closing context.Context) *leaderBoard {
	b := &leaderBoard{closing: closing, changed: make(chan struct{}), heard: timers.NewSignal()}
	b.present, b.endPresent = context.WithCancel(context.Background())
	return b
}

// endStreams ends the streams that require a leader, if there is still none.
func (b *leaderBoard) endStreams() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.now.known() {
		b.endPresent()
	}
}

// presence says whether a leader is known. The context ends once there has been
// none for long.
func (b *leaderBoard) presence() (known bool, present context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now.known(), b.present
}

func (b *leaderBoard) set(now leader) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now == now {
		return
	}
	if now.known() && (now.ID != b.now.ID || now.Term != b.now.Term) {
		b.changes++
	}
	b.now = now
	if now.known() && b.present.Err() != nil {
		b.present, b.endPresent = context.WithCancel(context.Background())
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// hasLeader says whether there is a leader, as far as this server knows.
func (b *leaderBoard) hasLeader() bool {
	known, _ := b.presence()
	return known
}

// get returns the present leader, and a channel that is closed when that is no
// longer true.
func (b *leaderBoard) get() (leader, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now, b.changed
}

// leaderChanges is how many leaders this server has seen.
func (b *leaderBoard) leaderChanges() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changes
}

// await returns the leader as soon as there is one.
func (b *leaderBoard) await(ctx context.Context) (leader, <-chan struct{}, error) {
	for {
		now, changed := b.get()
		if now.known() {
			return now, changed, nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return now, nil, contextError(ctx)
			}
			return now, nil, rpctypes.ErrGRPCNoLeader
		case <-b.closing.Done():
			return now, nil, ErrClosed
		case <-changed:
		}
	}
}

// leaderWatch keeps the board of the leader right.
type leaderWatch struct {
	leaderRoute
	leadership *leadership
}

// refresh works out who leads. A server whose disk stalls cannot take
// part in raft, but still hears the new leader: so a message of a later term
// than raft's own counts for more than what raft says.
func (w *leaderWatch) refresh() {
	w.leader.refreshing.Lock()
	defer w.leader.refreshing.Unlock()
	lead, _ := w.leadership.get()
	now := leader{Term: w.raft.CurrentTerm()}
	address, id := w.raft.LeaderWithID()
	switch {
	case lead.Leader:
		now = leader{ID: w.id, Address: w.address, Term: lead.Term, Self: true}
	case id != w.id:
		now.ID, now.Address = id, address
	}
	if id, address, term := w.replication.LeaderSeen(); term > now.Term {
		now = leader{ID: id, Address: address, Term: term}
		if lead.Leader {
			w.leadership.deposed(lead.Term)
		}
	}
	w.leader.set(now)
}

// run keeps the board right until ctx is done.
func (w *leaderWatch) run(ctx context.Context) {
	news := make(chan raft.Observation, 16) // raft drops what does not fit; the next look sees it all
	observer := raft.NewObserver(news, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	w.raft.RegisterObserver(observer)
	defer w.raft.DeregisterObserver(observer)
	_, changed := w.leadership.get()
	patience := time.NewTimer(leaderlessAfter)
	defer patience.Stop()
	for had := false; ; {
		w.refresh()
		w.replication.setTimers()
		now, _ := w.leader.get()
		if had && !now.known() {
			patience.Reset(leaderlessAfter)
		}
		if had = now.known(); had {
			w.leader.without.Store(nil)
			w.leader.counted.Store(true)
		}
		select {
		case <-ctx.Done():
			return
		case <-patience.C:
			w.leader.endStreams()
			if !now.known() {
				w.spawn(func() { w.replication.reportRemoval(ctx) })
				patience.Reset(askedAgainAfter)
			}
		case <-news:
		case <-changed:
			_, changed = w.leadership.get()
		case <-w.leader.heard:
		}
	}
}
