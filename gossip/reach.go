// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"
)

// Reach hears what says something about whether this machine reaches another one, long before gossip calls a member dead. None of
// its methods may block. All of it is a reason to look, and no more.
type Reach interface {
	// Came says that a member was heard, by anybody, and which port it has.
	Came(name string, port uint16)
	// Stopped says that a member has said good-bye.
	Stopped(name string)
	// Silent says that a member left a packet of this machine unanswered, or that all think it dead.
	Silent(name string)
	// Told says that another member does not reach it.
	Told(name string)
}

// nobody is a Reach that ignores what it is told.
type nobody struct{}

func (nobody) Came(string, uint16) {}
func (nobody) Stopped(string)      {}
func (nobody) Silent(string)       {}
func (nobody) Told(string)         {}

const (
	// lookMessage is the first byte of a message that says: this machine has found that a member does not answer, look for yourselves.
	// The member's name follows.
	lookMessage = 2
	// lookMost is how many members are told of it at once. Each that finds the same tells as many.
	lookMost = 16
)

// TellUnreachable tells some other members that this machine does not reach one.
func (m *Member) TellUnreachable(name string) {
	if m.ended.Load() {
		return
	}
	var others []*memberlist.Node
	for _, n := range m.list.Members() {
		if n.Name != m.o.Name && n.Name != name {
			others = append(others, n)
		}
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	message := append([]byte{lookMessage}, name...)
	for _, n := range others[:min(len(others), lookMost)] {
		if err := m.list.SendBestEffort(n, message); err != nil {
			m.o.Logger.Debug("gossip: a member was not told whom this machine does not reach", "member", n.Name, "error", err)
		}
	}
}

// dialed looks at the streams that memberlist opens to a member. Those for full exchanges have streamTimeout; the others replace a
// packet that was not answered within the time for a probe.
func (m *Member) dialed(a memberlist.Address, timeout time.Duration) {
	if a.Name != "" && a.Name != m.o.Name && timeout != streamTimeout {
		m.o.Reach.Silent(a.Name)
	}
}
