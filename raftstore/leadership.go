// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Leadership says whether this server leads, and in which Raft term. A server
// says that it leads only after it has applied everything that earlier terms
// committed.
type Leadership struct {
	Leader bool
	Term   uint64
}

// leadership holds the present Leadership and tells those who wait for it.
type leadership struct {
	mu      sync.Mutex
	now     Leadership
	closed  bool
	changed chan struct{} // closed and replaced at each change
	subs    []chan Leadership

	// notices are raft's: won or lost. Raft blocks on it; the reader is rarely late.
	notices chan bool
	// overtaken is a term of this server's that is over, although raft has not
	// noticed yet. Its capacity is 1.
	overtaken chan uint64
}

func newLeadership() *leadership {
	return &leadership{changed: make(chan struct{}), notices: make(chan bool, 16), overtaken: make(chan uint64, 1)}
}

func (l *leadership) set(now Leadership) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.now == now {
		return
	}
	l.now = now
	close(l.changed)
	l.changed = make(chan struct{})
	for _, sub := range l.subs {
		offerLatest(sub, now)
	}
}

func offerLatest(sub chan Leadership, now Leadership) {
	select {
	case <-sub: // the one before was not received
	default:
	}
	sub <- now
}

func (l *leadership) get() (Leadership, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.changed
}

// subscribe returns a channel that always holds the latest value not yet
// taken, hence its capacity of one. It starts with the present value.
func (l *leadership) subscribe() <-chan Leadership {
	l.mu.Lock()
	defer l.mu.Unlock()
	sub := make(chan Leadership, 1)
	sub <- l.now
	if l.closed {
		close(sub)
		return sub
	}
	l.subs = append(l.subs, sub)
	return sub
}

func (l *leadership) close() {
	l.set(Leadership{})
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

// deposed ends this server's leadership of a term although raft has not
// noticed yet.
func (l *leadership) deposed(term uint64) {
	select {
	case l.overtaken <- term:
	default: // one is waiting already
	}
}

// Leadership returns a channel of this server's leadership, beginning with the
// present one. A receiver that is late sees only the newest value. The channel
// is closed when the store is.
func (s *Store) Leadership() <-chan Leadership { return s.leadership.subscribe() }

// duties are what this server does while it leads.
type duties struct {
	*replica
	leadership  *leadership
	lessor      *lessor
	compactor   *compactor
	replication replication
}

// run turns raft's notices into Leadership, and runs what a leader must
// do for as long as it leads. It ends when ctx does.
//
// It may come late to a notice, since it waits for the end of the duties. Only the
// newest one counts then: raft's term is of now, and an older notice is of another.
func (d *duties) run(ctx context.Context) {
	stop := func() {}
	defer func() { stop() }()
	for {
		var leads bool
		select {
		case <-ctx.Done():
			return
		case leads = <-d.leadership.notices:
			leads, _ = newest(d.leadership.notices, leads)
			if lead, _ := d.leadership.get(); leads && lead.Leader && lead.Term == d.raft.CurrentTerm() {
				continue // taken up already
			}
		case term := <-d.leadership.overtaken:
			if lead, _ := d.leadership.get(); !lead.Leader || lead.Term != term {
				continue
			}
			d.log.Warn("another server leads the store now: this one's disk did not keep up", "term", term)
		}
		d.leadership.set(Leadership{Term: d.raft.CurrentTerm()})
		stop()
		stop = func() {}
		if !leads {
			continue
		}
		if term, ok := d.takeUp(); ok {
			stop = d.start(ctx, term)
			d.leadership.set(Leadership{Leader: true, Term: term})
		}
	}
}

// takeUp waits until this server has applied what earlier terms committed, and
// returns the term that it leads in. If it returns false, the leadership is lost,
// and perhaps won again: raft has more to tell.
func (d *duties) takeUp() (term uint64, ok bool) {
	for {
		term = d.raft.CurrentTerm()
		err := d.await(d.raft.Barrier(0))
		if err != nil {
			d.log.Warn("lost the leadership before taking it up", "term", term, "err", err)
		}
		// What raft said of earlier terms it said before it took the barrier.
		leads, more := newest(d.leadership.notices, true)
		switch {
		case leads && err == nil && d.raft.CurrentTerm() == term:
			return term, true
		case !leads || !more:
			return 0, false
		}
	}
}

// newest returns the newest of the notices that wait, or the one before them if
// there are none, which more tells.
func newest(notices <-chan bool, before bool) (leads, more bool) {
	for leads = before; ; more = true {
		select {
		case leads = <-notices:
		default:
			return leads, more
		}
	}
}

// start starts what only the leader does. The returned function ends it
// and waits.
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

// committed returns how far this server, as leader of a term, knows the log to
// be committed. The view comes before the look at raft's term, which is saved
// before an entry of its leader is taken: what another leader committed since is
// no entry of this one's log, and followers of this term must not hear of it.
func committed(l *leadership, r *replica) (term, index uint64, ok bool) {
	lead, _ := l.get()
	if !lead.Leader {
		return 0, 0, false
	}
	index = r.fsm.view().Applied()
	return lead.Term, index, r.raft.CurrentTerm() == lead.Term
}
