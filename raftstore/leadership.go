// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Leadership says whether this server leads, and in which Raft term. A server leads only after it has applied
// everything that earlier terms committed.
type Leadership struct {
	Leader bool
	Term   uint64
}

// leadership holds the present Leadership, and notifies goroutines that wait for a change.
type leadership struct {
	mu      sync.Mutex
	current Leadership
	closed  bool
	changed chan struct{} // closed and replaced at each change
	subs    []chan Leadership
	// isWithheld says that subs receive no leadership.
	isWithheld bool

	// notices are raft's: leadership won or lost. Raft blocks when it is full, which is rare, since its reader is
	// seldom behind.
	notices chan bool
	// endedTerms receives a term of this server's leadership that is over, although raft has not noticed yet. Its
	// capacity is 1.
	endedTerms chan uint64
}

func newLeadership() *leadership {
	return &leadership{changed: make(chan struct{}), notices: make(chan bool, 16), endedTerms: make(chan uint64, 1)}
}

func (l *leadership) setLeadership(now Leadership) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.current == now {
		return
	}
	l.current = now
	close(l.changed)
	l.changed = make(chan struct{})
	l.tellSubscribers()
}

// withhold lets subscribers receive that this server does not lead, if yes is true. Otherwise they receive the real
// leadership again.
func (l *leadership) withhold(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.isWithheld == yes {
		return
	}
	l.isWithheld = yes
	l.tellSubscribers()
}

// tellSubscribers sends what they receive now. l.mu is held.
func (l *leadership) tellSubscribers() {
	for _, sub := range l.subs {
		timers.Replace(sub, l.shown())
	}
}

// shown returns what subscribers receive. l.mu is held.
func (l *leadership) shown() Leadership {
	if l.isWithheld {
		return Leadership{Term: l.current.Term}
	}
	return l.current
}

func (l *leadership) get() (Leadership, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.changed
}

// subscribe returns a channel that always holds the newest value that was not received yet. Hence its capacity of 1. It
// begins with the present value.
func (l *leadership) subscribe() <-chan Leadership {
	l.mu.Lock()
	defer l.mu.Unlock()
	sub := make(chan Leadership, 1)
	sub <- l.shown()
	if l.closed {
		close(sub)
		return sub
	}
	l.subs = append(l.subs, sub)
	return sub
}

func (l *leadership) close() {
	l.setLeadership(Leadership{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.changed)
	for _, sub := range l.subs {
		close(sub)
	}
}

// endTerm ends this server's leadership of a term although raft has not noticed yet that it is over.
func (l *leadership) endTerm(term uint64) {
	select {
	case l.endedTerms <- term:
	default: // another term waits already
	}
}

// Leadership returns a channel of this server's leadership, beginning with the present value. A slow receiver sees only
// the newest value. While this server's clock is off (Health.ClockOff) it is not to lead, and the channel says that it
// does not. The channel is closed when the store closes.
func (s *Store) Leadership() <-chan Leadership { return s.leadership.subscribe() }

// duties runs what this server does while it leads.
type duties struct {
	*replica
	leadership  *leadership
	lessor      *lessor
	compactor   *compactor
	replication replication
}

// run turns raft's notices into Leadership, and runs a leader's duties for as long as this server leads. It returns
// when ctx is done.
//
// It may read a notice late, since it waits for the end of the duties. Only the newest notice counts then: raft's term
// is that of now, while an older notice is of an earlier term.
func (d *duties) run(ctx context.Context) {
	stop := func() {}
	defer func() { stop() }()
	for {
		var leads bool
		select {
		case <-ctx.Done():
			return
		case leads = <-d.leadership.notices:
			leads, _ = newestNotice(d.leadership.notices, leads)
			if lead, _ := d.leadership.get(); leads && lead.Leader && lead.Term == d.raft.CurrentTerm() {
				continue // its duties run already
			}
		case term := <-d.leadership.endedTerms:
			if lead, _ := d.leadership.get(); !lead.Leader || lead.Term != term {
				continue
			}
			d.log.Warn("another server leads the store now, because this server's disk was too slow", "term", term)
		}
		d.leadership.setLeadership(Leadership{Term: d.raft.CurrentTerm()})
		stop()
		stop = func() {}
		if !leads {
			continue
		}
		if term, ok := d.awaitBarrier(); ok {
			stop = d.start(ctx, term)
			d.leadership.setLeadership(Leadership{Leader: true, Term: term})
		}
	}
}

// awaitBarrier waits until this server has applied what earlier terms committed, and returns the term in which it
// leads. If it returns false, the leadership is lost. It may also have been won again, and then another notice follows.
func (d *duties) awaitBarrier() (term uint64, ok bool) {
	for {
		term = d.raft.CurrentTerm()
		err := d.await(d.raft.Barrier(0))
		if err != nil {
			d.log.Warn("lost the leadership before this server could serve as leader", "term", term, "err", err)
		}
		// Raft sent its notices of earlier terms before it accepted the barrier.
		leads, more := newestNotice(d.leadership.notices, true)
		switch {
		case leads && err == nil && d.raft.CurrentTerm() == term:
			return term, true
		case !leads || !more:
			return 0, false
		}
	}
}

// newestNotice returns the newest of the waiting notices, or before if none waits. more says whether any waited.
func newestNotice(notices <-chan bool, before bool) (leads, more bool) {
	for leads = before; ; more = true {
		select {
		case leads = <-notices:
		default:
			return leads, more
		}
	}
}

// start starts the leader's duties. The returned function stops them and waits for their end.
func (d *duties) start(ctx context.Context, term uint64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	d.log.Info("this server leads the store", "term", term)
	d.lessor.promote(func() []mvcc.Lease { return d.fsm.view().Leases() })
	all.Go(func() { d.lessor.run(ctx) })
	all.Go(func() { d.compactor.run(ctx) })
	all.Go(func() { d.replication.runSteward(ctx) })
	return func() {
		cancel()
		all.Wait()
		d.lessor.demote()
	}
}

// committedIndex returns the index up to which this server, as leader of a term, knows the log to be committed. It
// reads the view before raft's term. Raft saves a later leader's term before it accepts an entry from that leader. So
// if the term is still the same, the view has no entry of a later leader. Such an entry is not in this leader's log,
// and followers of this term must not learn of its index.
func committedIndex(l *leadership, r *replica) (term, index uint64, ok bool) {
	lead, _ := l.get()
	if !lead.Leader {
		return 0, 0, false
	}
	index = r.fsm.view().Applied()
	return lead.Term, index, r.raft.CurrentTerm() == lead.Term
}
