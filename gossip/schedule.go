// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	_ "unsafe" // for go:linkname

	"github.com/hashicorp/memberlist"
)

// A member that has met no other one has none to probe or to send to. memberlist wakes the process three times a second
// all the same (docs/adr/0040). It starts that when it is made, and exports no way to stop it. Others can still reach
// such a member, and it looks for them as before.

//go:linkname schedule github.com/hashicorp/memberlist.(*Memberlist).schedule
func schedule(*memberlist.Memberlist)

//go:linkname deschedule github.com/hashicorp/memberlist.(*Memberlist).deschedule
func deschedule(*memberlist.Memberlist)

// stopProbes stops probes and gossip until wake is called.
func (m *Member) stopProbes() {
	m.stoppedProbes.Store(m.list)
	deschedule(m.list)
	if m.list.NumMembers() > 1 { // another one joined before wake could be called
		m.wake()
	}
}

// wake starts probes and gossip. It does nothing when they run.
func (m *Member) wake() {
	if list := m.stoppedProbes.Load(); list != nil {
		schedule(list)
	}
}
