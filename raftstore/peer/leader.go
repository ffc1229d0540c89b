// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// leaderObserver observes the leader of the highest term from which a message has arrived.
type leaderObserver struct {
	*connections
	dialing atomic.Bool // a goroutine checks whether the leader's process has ended

	mu          sync.Mutex
	id          raft.ServerID
	address     raft.ServerAddress
	term        uint64
	lastContact time.Time // when its last message arrived
	gaps        gaps
	changed     []func()
	onEnd       []func(raft.ServerID)
}

// LeaderSeen returns the leader of the highest term from which a message arrived, or zero values. It does not matter
// whether raft could handle the message. This server's own leadership does not count.
func (l *leaderObserver) LeaderSeen() (id raft.ServerID, address raft.ServerAddress, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id, l.address, l.term
}

// LeaderContact returns when the last message arrived from the leader that LeaderSeen returns. It is zero if there was
// none.
func (l *leaderObserver) LeaderContact() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastContact
}

// LeaderGap returns the longest time between two messages of a leader, over the last ten to twenty seconds in which
// messages arrived. A gap of maxGap or more does not count, since no server waits that long for a leader.
func (l *leaderObserver) LeaderGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.gaps.longest[0], l.gaps.longest[1])
}

const (
	maxGap    = time.Second
	gapWindow = 10 * time.Second
)

// gaps has the longest times between two messages of a leader: in the present window (gapWindow) and in the one before.
type gaps struct {
	windowStart time.Time // when the present window began
	longest     [2]time.Duration
}

func (g *gaps) record(now time.Time, gap time.Duration) {
	if now.Sub(g.windowStart) > gapWindow {
		g.windowStart, g.longest = now, [2]time.Duration{0, g.longest[0]}
	}
	if gap < maxGap {
		g.longest[0] = max(g.longest[0], gap)
	}
}

// OnLeader registers f, which is called each time LeaderSeen changes. The goroutine that handles a message calls it, so
// f must not block.
func (l *leaderObserver) OnLeader(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = append(l.changed, f)
}

// record notes a message of a leader of a term.
func (l *leaderObserver) record(from raft.RPCHeader, term uint64) {
	l.mu.Lock()
	if now := time.Now(); term >= l.term {
		if term == l.term {
			l.gaps.record(now, now.Sub(l.lastContact))
		}
		l.lastContact = now
	}
	if term < l.term || term == l.term && string(l.id) == string(from.ID) && string(l.address) == string(from.Addr) {
		l.mu.Unlock()
		return
	}
	l.id, l.address, l.term = raft.ServerID(from.ID), raft.ServerAddress(from.Addr), term
	changed := l.changed
	l.mu.Unlock()
	for _, f := range changed {
		f()
	}
}

const (
	// lostDial bounds one attempt to connect to a leader whose process may have ended.
	lostDial = 100 * time.Millisecond
	// lostDials is how many attempts are made. A process that exits loses its connections one by one, so its listener
	// may remain for a few milliseconds after the first of them broke. The pause between attempts doubles, beginning
	// with lostFirst.
	lostDials = 6
	lostFirst = 4 * time.Millisecond
)

// OnLeaderEnd registers f, which is called when the leader's process has ended: a connection on which it sent raft's
// messages broke, and its address refuses new ones. That is noticed at once when the process exits, for whatever
// reason. A machine without power or behind a cut cable is not noticed here. f must not block.
func (l *leaderObserver) OnLeaderEnd(f func(raft.ServerID)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onEnd = append(l.onEnd, f)
}

// connectionEnded is called when an incoming raft connection has ended with err. If it was the leader's,
// connectionEnded checks whether the leader's process has ended.
func (l *leaderObserver) connectionEnded(p *peer, err error) {
	l.mu.Lock()
	leads, address, callbacks := string(l.id) == p.id, l.address, l.onEnd
	l.mu.Unlock()
	if !leads || errors.Is(err, os.ErrDeadlineExceeded) || len(callbacks) == 0 || !l.dialing.CompareAndSwap(false, true) {
		return
	}
	l.spawn(func() {
		defer l.dialing.Store(false)
		if l.leaderRefuses(string(address)) {
			for _, f := range callbacks {
				f(raft.ServerID(p.id))
			}
		}
	})
}

// leaderRefuses says whether no process listens at an address any more.
func (l *leaderObserver) leaderRefuses(address string) bool {
	pause := lostFirst
	for range lostDials {
		ctx, cancel := context.WithTimeout(l.ctx, lostDial)
		c, err := l.opts.Dial(ctx, address)
		cancel()
		if errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		if err == nil {
			closeConn(c)
		}
		if !timers.Sleep(l.ctx, pause) {
			return false
		}
		pause *= 2
	}
	return false
}
