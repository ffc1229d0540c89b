// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// A leader is the server that leads the cluster, as far as this server knows.
type leader struct {
	ID      raft.ServerID
	Address raft.ServerAddress
	Term    uint64
	// Self says that this server leads and may serve: it has applied everything that earlier terms committed.
	Self bool
}

// exists says whether l is a known leader, and not the zero value.
func (l leader) exists() bool { return l.Self || l.Address != "" }

// errMoved says that the leader that something was sent to does not lead any more, as far as this server knows.
var errMoved = errors.New("raftstore: the leadership has moved")

// leaderBoard holds the present leader, and notifies goroutines that wait for another leader.
type leaderBoard struct {
	mu      sync.Mutex
	current leader
	changes uint64
	changed chan struct{} // closed and replaced at each change
	// leaderContext ends when there has been no leader for leaderlessAfter. The next leader replaces it by a new one.
	leaderContext context.Context
	endPresent    context.CancelFunc
	// leaderlessSince is since when this server has had no leader that it can use. It is zero while there is one.
	leaderlessSince   time.Time
	leaderlessChanged chan struct{} // closed and replaced when leaderlessSince is set or cleared
	// unanswered has the addresses of other servers that were the leader when a call to them got no answer, until one
	// gets an answer.
	unanswered    map[raft.ServerAddress]uint64 // with the newest term of these
	anyUnanswered atomic.Bool                   // unanswered is not empty
	// awaitedIndex is the index of a committed entry for which a request has waited for too long, until this server has
	// applied it. It is 0 if there is none.
	awaitedIndex atomic.Uint64

	refreshing  sync.Mutex    // held while refresh finds out who leads
	leaderHeard timers.Signal // sent when the transport heard another leader

	// reportedLeader is the last report of other servers that have a leader while this one has none that it can use. It
	// is nil if they reported no leader, or if this server has one.
	reportedLeader      atomic.Pointer[reportedLeader]
	membershipConfirmed atomic.Bool // see Health.MembershipConfirmed
	// joinRefused is why the leader did not admit this server when it asked last, nil if it did or was not asked.
	joinRefused atomic.Pointer[string]

	closing context.Context // ends when the store closes
}

// leaderlessAfter is how long there may be no leader before streams that require a leader end. etcd waits for three of
// its election timeouts, 3 s.
const leaderlessAfter = 3 * time.Second

// askedAgainAfter is the interval at which a server without a leader asks the others whether they have a leader.
const askedAgainAfter = 10 * time.Second

func newLeaderBoard(closing context.Context) *leaderBoard {
	b := &leaderBoard{
		closing: closing, changed: make(chan struct{}), leaderHeard: timers.NewSignal(),
		leaderlessSince: time.Now(), leaderlessChanged: make(chan struct{}),
		unanswered: map[raft.ServerAddress]uint64{},
	}
	b.leaderContext, b.endPresent = context.WithCancel(context.Background())
	return b
}

// endStreams ends the streams that require a leader, if there is still no leader.
func (b *leaderBoard) endStreams() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.current.exists() {
		b.endPresent()
	}
}

// presence says whether a leader is known. The context ends once there has been no leader for leaderlessAfter.
func (b *leaderBoard) presence() (known bool, present context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current.exists(), b.leaderContext
}

func (b *leaderBoard) setLeader(now leader) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == now {
		return
	}
	if now.exists() && (now.ID != b.current.ID || now.Term != b.current.Term) {
		b.changes++
	}
	b.current = now
	if now.exists() && b.leaderContext.Err() != nil {
		b.leaderContext, b.endPresent = context.WithCancel(context.Background())
	}
	close(b.changed)
	b.changed = make(chan struct{})
	b.noteUsable()
}

// noteUsable notes whether there is a leader that this server can use. b.mu is held.
func (b *leaderBoard) noteUsable() {
	usable := b.usable()
	if usable == b.leaderlessSince.IsZero() {
		return
	}
	b.leaderlessSince = time.Time{}
	if !usable {
		b.leaderlessSince = time.Now()
	}
	close(b.leaderlessChanged)
	b.leaderlessChanged = make(chan struct{})
}

// usable says whether there is a leader that answers this server's calls, and whose entries arrive. b.mu is held.
func (b *leaderBoard) usable() bool {
	term, ok := b.unanswered[b.current.Address]
	return b.current.Self || b.current.exists() && !(ok && term == b.current.Term) && b.awaitedIndex.Load() == 0
}

// behindAfter is how long a request may wait until this server has applied a committed entry. After that the server
// counts as one without a leader until it has: heartbeats may arrive where entries do not.
const behindAfter = 3 * time.Second

// awaitApplied returns the first view that holds a committed command.
func (b *leaderBoard) awaitApplied(ctx context.Context, f *fsm, index uint64) (*mvcc.View, error) {
	began := time.Now()
	view, err := f.waitApplied(ctx, index)
	if err != nil && time.Since(began) >= behindAfter {
		b.noteBehind(index)
		b.noteApplied(f.view().Applied())
	}
	return view, err
}

func (b *leaderBoard) noteBehind(index uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.awaitedIndex.Store(index)
	b.noteUsable()
	b.leaderHeard.Send()
}

// noteApplied notes how far this server has applied the log.
func (b *leaderBoard) noteApplied(index uint64) {
	if behind := b.awaitedIndex.Load(); behind == 0 || index < behind {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.awaitedIndex.Store(0)
	b.noteUsable()
	b.leaderHeard.Send()
}

// noteUnanswered notes that the server at an address gives no answer to calls, as the leader of a term.
func (b *leaderBoard) noteUnanswered(address raft.ServerAddress, term uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unanswered[address] = term
	b.anyUnanswered.Store(true)
	b.noteUsable()
	b.leaderHeard.Send()
}

// noteAnswered notes that the server at an address has answered a call.
func (b *leaderBoard) noteAnswered(address string) {
	if !b.anyUnanswered.Load() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.unanswered[raft.ServerAddress(address)]; !ok {
		return
	}
	delete(b.unanswered, raft.ServerAddress(address))
	b.anyUnanswered.Store(len(b.unanswered) > 0)
	b.noteUsable()
	b.leaderHeard.Send()
}

// retainUnanswered drops the notes about servers that are members no longer.
func (b *leaderBoard) retainUnanswered(members []raft.Server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.unanswered, func(address raft.ServerAddress, _ uint64) bool {
		return !slices.ContainsFunc(members, func(m raft.Server) bool { return m.Address == address })
	})
	b.anyUnanswered.Store(len(b.unanswered) > 0)
	b.noteUsable()
}

// unansweredIn returns the newest term in which the server at an address led and gave no answer to this server's
// calls. It returns 0 if a call has been answered since.
func (b *leaderBoard) unansweredIn(address raft.ServerAddress) (term uint64) {
	if !b.anyUnanswered.Load() {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unanswered[address]
}

// leaderless returns since when this server has had no leader that it can use, and a channel that is closed when that
// changes. The time is zero while there is one.
func (b *leaderBoard) leaderless() (since time.Time, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leaderlessSince, b.leaderlessChanged
}

// hasLeader says whether there is a leader that this server can use, as far as it knows.
func (b *leaderBoard) hasLeader() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.usable()
}

// get returns the present leader, and a channel that is closed at the next change.
func (b *leaderBoard) get() (leader, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current, b.changed
}

// leaderChanges returns how many times this server has seen another leader or another term of a leader.
func (b *leaderBoard) leaderChanges() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changes
}

// await returns the leader as soon as there is one. Its channel is closed when the leader changes. If ctx runs out
// before, the error is ErrGRPCNoLeader.
func (b *leaderBoard) await(ctx context.Context) (leader, <-chan struct{}, error) {
	for {
		now, changed := b.get()
		if now.exists() {
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

// leaderWatch keeps leaderBoard up to date.
type leaderWatch struct {
	leaderRoute
	leadership *leadership
}

// refresh finds out who leads. A server whose disk stalls cannot take part in raft, but still hears the new leader. So
// if the transport has seen a leader of a later term than raft's own, that leader counts.
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
			w.leadership.endTerm(lead.Term)
		}
	}
	w.leader.setLeader(now)
}

// run keeps leaderBoard up to date until ctx is done.
func (w *leaderWatch) run(ctx context.Context) {
	news := make(chan raft.Observation, 16) // raft drops what does not fit; the next refresh covers it
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
	leaderless := time.NewTimer(leaderlessAfter)
	defer leaderless.Stop()
	for had := false; ; {
		w.refresh()
		w.replication.setTimeouts()
		has := w.leader.hasLeader()
		if had && !has {
			leaderless.Reset(leaderlessAfter)
		}
		if had = has; had {
			w.leader.reportedLeader.Store(nil)
			w.leader.membershipConfirmed.Store(true)
		}
		select {
		case <-ctx.Done():
			return
		case <-leaderless.C:
			w.leader.endStreams()
			if !has {
				w.spawn(func() { w.replication.reportRemoval(ctx) })
				leaderless.Reset(askedAgainAfter)
			}
		case <-news:
		case <-changed:
			_, changed = w.leadership.get()
		case <-w.leader.leaderHeard:
		}
	}
}
