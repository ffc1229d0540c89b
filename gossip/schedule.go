// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	_ "unsafe" // for go:linkname

	"github.com/hashicorp/memberlist"
)

// A member that has not met another one has no member to probe or to send anything; memberlist wakes the process three
// times a second for it all the same (docs/adr/0040). It starts to do so when it is made, and has no exported way to
// stop it. Others reach such a member as any other one, and it looks for them as before.

//go:linkname schedule github.com/hashicorp/memberlist.(*Memberlist).schedule
func schedule(*memberlist.Memberlist)

//go:linkname deschedule github.com/hashicorp/memberlist.(*Memberlist).deschedule
func deschedule(*memberlist.Memberlist)

// rest stops probes and gossip until wake is called.
func (m *Member) rest() {
	m.resting.Store(m.list)
	deschedule(m.list)
	if m.list.NumMembers() > 1 { // another one came before wake could know of it
		m.wake()
	}
}

// wake starts them. It does nothing when they run.
func (m *Member) wake() {
	if list := m.resting.Load(); list != nil {
		schedule(list)
	}
}
