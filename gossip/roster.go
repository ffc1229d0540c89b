// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// State says whether a member answers, and if not, why.
type State string

// The states. Unresponsive means that members probed it without a reply: it is dead or cut off, which gossip cannot
// distinguish. Left means that it announced that it stops. Remembered means that it was a member in an earlier run,
// without contact since.
const (
	Alive        State = "alive"
	Unresponsive State = "silent"
	Left         State = "left"
	Remembered   State = "remembered"
)

// Info is what this machine knows of a member.
type Info struct {
	Name string
	// Address is where it is reached, by TCP and UDP.
	Address netip.AddrPort
	State   State
	// Since is when this machine learned of the state.
	Since time.Time
	// Self means that it is this machine.
	Self bool
	Meta

	stoppedAt time.Time // when it announced that it stops
}

// byeLasts is how long after that announcement an unresponsive member counts as stopped, and not as lost.
const byeLasts = 30 * time.Second

// roster is what this machine knows of all members, including those that memberlist has deleted as dead.
type roster struct {
	self string
	now  func() time.Time

	mu      sync.Mutex
	members map[string]Info
	changes timers.Broadcast
}

func newRoster(self string, now func() time.Time) *roster {
	return &roster{self: self, now: now, members: map[string]Info{}}
}

// update changes what is known of a member. It returns the state before and after.
func (r *roster) update(name string, f func(*Info)) (before, after Info) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = r.members[name]
	after = before
	after.Name, after.Self = name, name == r.self
	f(&after)
	if after.State != before.State {
		after.Since = r.now()
	}
	r.members[name] = after
	r.changes.Send()
	return before, after
}

// mayJoin reports whether a member may join: it is alive already, or fewer than most members are alive.
func (r *roster) mayJoin(name string, most int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members[name].State == Alive || name == r.self {
		return true
	}
	alive := 0
	for _, m := range r.members {
		if m.State == Alive {
			alive++
		}
	}
	return alive < most
}

// noteLeaving records that a member is about to stop. It is alive until memberlist reports that it left. That may have
// been a moment ago, since messages overtake one another.
func (r *roster) noteLeaving(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.members[name]; ok {
		m.stoppedAt = r.now()
		if m.State == Unresponsive && m.stoppedAt.Sub(m.Since) < byeLasts {
			m.State = Left
		}
		r.members[name] = m
		r.changes.Send()
	}
}

// markUnresponsive records that a member became unresponsive.
func (r *roster) markUnresponsive(name string) Info {
	_, after := r.update(name, func(i *Info) {
		i.State = Unresponsive
		if !i.stoppedAt.IsZero() && r.now().Sub(i.stoppedAt) < byeLasts {
			i.State = Left
		}
	})
	return after
}

// prune deletes members that have been unresponsive for too long. If there are more than most, it deletes the longest
// unresponsive ones.
func (r *roster) prune(after time.Duration, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var stopped []Info
	for _, m := range r.members {
		if m.State != Alive {
			stopped = append(stopped, m)
		}
	}
	slices.SortFunc(stopped, func(a, b Info) int { return b.Since.Compare(a.Since) })
	for i, m := range stopped {
		if i >= most || r.now().Sub(m.Since) > after {
			delete(r.members, m.Name)
			r.changes.Send()
		}
	}
}

// list returns the members, servers first, then by name.
func (r *roster) list() []Info {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.members), func(a, b Info) int {
		return cmp.Or(cmp.Compare(roleOrder(a.Role), roleOrder(b.Role)), cmp.Compare(a.Name, b.Name))
	})
}

func roleOrder(r Role) int {
	if r == RoleServer {
		return 0
	}
	return 1
}
