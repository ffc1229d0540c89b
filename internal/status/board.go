// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// State is the state of a part.
type State string

// The states. Waiting means that the part does nothing because it is not its turn, as controllers on a server that
// does not lead; Degraded that it works, but something is wrong.
const (
	Starting State = "starting"
	Running  State = "running"
	Waiting  State = "waiting"
	Degraded State = "degraded"
	Failed   State = "failed"
	Stopped  State = "stopped"
	Disabled State = "disabled"
)

// Trouble says whether a person should check it.
func (s State) Trouble() bool { return s == Degraded || s == Failed }

// Component is what is known about one part.
type Component struct {
	Name  string    `json:"name"`
	State State     `json:"state"`
	Since time.Time `json:"since"` // when it entered the state
	// Message says why: for trouble what happened, what is safe, what to do.
	Message string `json:"message,omitempty"`
}

// Source is where a report's components come from.
type Source interface {
	// Components lists all parts in the order in which a person wants to read them.
	Components() []Component
}

// Board is a Source that parts write on. The zero value is not usable: see [NewBoard].
type Board struct {
	now func() time.Time

	mu      sync.Mutex
	parts   []*part
	changed chan struct{} // closed at the next change
}

type part struct {
	Component
	order int
}

// NewBoard makes an empty board; now is the clock.
func NewBoard(now func() time.Time) *Board {
	return &Board{now: now, changed: make(chan struct{})}
}

// Part is one part's line on a board. A nil Part takes reports and drops them, so that tests need no board.
type Part struct {
	board *Board
	part  *part
}

// Part adds a line, or returns the one of that name; a nil board has none. Parts are listed in the order in which they
// were added.
func (b *Board) Part(name string) *Part {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.parts {
		if p.Name == name {
			return &Part{b, p}
		}
	}
	p := &part{Component: Component{Name: name, State: Starting, Since: b.now()}, order: len(b.parts)}
	b.parts = append(b.parts, p)
	b.notify()
	return &Part{b, p}
}

// Set reports a state. Since changes only when the state does.
func (p *Part) Set(s State, message string) {
	if p == nil {
		return
	}
	p.board.mu.Lock()
	defer p.board.mu.Unlock()
	if p.part.State == s && p.part.Message == message {
		return
	}
	if p.part.State != s {
		p.part.State, p.part.Since = s, p.board.now()
	}
	p.part.Message = message
	p.board.notify()
}

func (b *Board) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of any part.
func (b *Board) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Components lists all parts in the order in which they were added.
func (b *Board) Components() []Component {
	b.mu.Lock()
	defer b.mu.Unlock()
	parts := slices.Clone(b.parts)
	slices.SortStableFunc(parts, func(x, y *part) int { return cmp.Compare(x.order, y.order) })
	out := make([]Component, len(parts))
	for i, p := range parts {
		out[i] = p.Component
	}
	return out
}
