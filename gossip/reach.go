// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"
)

// Reach hears what says something about whether this machine reaches another one, long before gossip calls a member
// dead. None of its methods may block. All of it is a reason to look, and no more.
type Reach interface {
	// NodeJoined says that a member was heard, by anybody, and which port it has.
	NodeJoined(name string, port uint16)
	// NodeLeft says that a member has said good-bye, or that all think it dead: no member probes it from now on.
	NodeLeft(name string)
	// ProbeFailed says that a member left a packet of this machine unanswered, or that all think it dead.
	ProbeFailed(name string)
	// PeerReportedFailure says that another member does not reach it.
	PeerReportedFailure(name string)
}

// nopObserver is a Reach that does nothing.
type nopObserver struct{}

func (nopObserver) NodeJoined(string, uint16)  {}
func (nopObserver) NodeLeft(string)            {}
func (nopObserver) ProbeFailed(string)         {}
func (nopObserver) PeerReportedFailure(string) {}

const (
	// failureMessage is the first byte of a message that says: this machine has found that a member does not answer,
	// look for yourselves. The member's name follows.
	failureMessage = 2
	// failureFanout is how many members get a report of it at once. Each that finds the same reports to as many.
	failureFanout = 16
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
	message := append([]byte{failureMessage}, name...)
	for _, n := range others[:min(len(others), failureFanout)] {
		if err := m.list.SendBestEffort(n, message); err != nil {
			m.o.Logger.Debug("gossip: a member could not be sent the members that this machine does not reach", "member", n.Name, "error",
				err)
		}
	}
}

// dialed looks at the streams that memberlist opens to a member. Those for full exchanges have streamTimeout; the
// others replace a packet that was not answered within the time for a probe.
func (m *Member) dialed(a memberlist.Address, timeout time.Duration) {
	if a.Name != "" && a.Name != m.o.Name && timeout != streamTimeout {
		m.o.Reach.ProbeFailed(a.Name)
	}
}
