// SPDX-License-Identifier: Apache-2.0

package status

import (
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// State is the state of a part.
type State string

// The states. Waiting means that the part does nothing for the present, as controllers on a server that does not lead.
// Degraded means that the part works, but something is wrong.
const (
	Starting State = "starting"
	Running  State = "running"
	Waiting  State = "waiting"
	Degraded State = "degraded"
	Failed   State = "failed"
	Stopped  State = "stopped"
	Disabled State = "disabled"
)

// Trouble says whether a user should examine the part.
func (s State) Trouble() bool { return s == Degraded || s == Failed }

// Component is the state of one part.
type Component struct {
	Name  string    `json:"name"`
	State State     `json:"state"`
	Since time.Time `json:"since"` // when the part entered the state
	// Message is the reason. For trouble, it says what happened, what is safe and what to do.
	Message string `json:"message,omitempty"`
}

// Board is where parts report their states. Its zero value cannot be used: see [NewBoard].
type Board struct {
	now func() time.Time

	mu      sync.Mutex
	parts   []*boardPart
	changes timers.Broadcast
}

type boardPart struct {
	Component
	check func() string // or nil
	found time.Time     // when check began to return a problem; zero while it returns none
}

func (p *boardPart) shown(now func() time.Time) Component {
	out, problem := p.Component, ""
	if p.check != nil && (p.State == Starting || p.State == Running) {
		problem = p.check()
	}
	if problem == "" {
		p.found = time.Time{}
		return out
	}
	if p.found.IsZero() {
		p.found = now()
	}
	out.State, out.Since, out.Message = Degraded, p.found, problem
	return out
}

// NewBoard makes an empty board. now is its clock.
func NewBoard(now func() time.Time) *Board {
	return &Board{now: now}
}

// Part is the line of one part on a board. A nil Part ignores reports, so that tests need no board.
type Part struct {
	board *Board
	line  *boardPart
}

// Part returns the line with this name, and adds it if there is none. It returns nil for a nil board. Lines are in the
// order in which they were added.
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
	p := &boardPart{Component: Component{Name: name, State: Starting, Since: b.now()}}
	b.parts = append(b.parts, p)
	b.changes.Send()
	return &Part{b, p}
}

// Set reports a state. Since changes only when the state changes.
func (p *Part) Set(s State, message string) {
	if p == nil {
		return
	}
	p.board.mu.Lock()
	defer p.board.mu.Unlock()
	if p.line.State == s && p.line.Message == message {
		return
	}
	if p.line.State != s {
		p.line.State, p.line.Since = s, p.board.now()
	}
	p.line.Message = message
	p.board.changes.Send()
}

// SetCheck sets a function that each report calls while the part is starting or running. A problem that it returns
// makes the part degraded in that report. The function must not block.
func (p *Part) SetCheck(check func() string) {
	if p == nil {
		return
	}
	p.board.mu.Lock()
	defer p.board.mu.Unlock()
	p.line.check = check
}

// Changed returns a channel that is closed at the next change of any part.
func (b *Board) Changed() <-chan struct{} { return b.changes.Next() }

// Components returns the states of all parts in the order in which they were added.
func (b *Board) Components() []Component {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Component, len(b.parts))
	for i, p := range b.parts {
		out[i] = p.shown(b.now)
	}
	return out
}
