// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"
)

// Reach receives signs that this machine does, or does not, reach another one, long before gossip declares a member
// dead. None of its methods may block. All signs are only a reason to check.
type Reach interface {
	// NodeJoined reports that a member is alive, as this machine or another member observed, and its port.
	NodeJoined(name string, port uint16)
	// NodeLeft reports that a member has announced that it stops, or that all consider it dead: no member probes it
	// from now on.
	NodeLeft(name string)
	// ProbeFailed reports that a member did not reply to a packet of this machine, or that all consider it dead.
	ProbeFailed(name string)
	// PeerReportedFailure reports that another member does not reach it.
	PeerReportedFailure(name string)
}

// nopObserver is a Reach that does nothing.
type nopObserver struct{}

func (nopObserver) NodeJoined(string, uint16)  {}
func (nopObserver) NodeLeft(string)            {}
func (nopObserver) ProbeFailed(string)         {}
func (nopObserver) PeerReportedFailure(string) {}

const (
	// failureMessage is the first byte of a message that reports an unresponsive member, so that the receivers check
	// it. The member's name follows.
	failureMessage = 2
	// failureFanout is how many members get such a report at once. Each that finds the same sends it to as many.
	failureFanout = 16
)

// ReportUnreachable reports to some other members that this machine does not reach one.
func (m *Member) ReportUnreachable(name string) {
	if m.runEnded.Load() {
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
			m.o.Logger.Debug("gossip: the list of members that this machine does not reach could not be sent to a member", "member", n.Name, "error",
				err)
		}
	}
}

// dialed handles the streams that memberlist opens to a member. Those for full exchanges have streamTimeout. The others
// replace a packet without a reply within the time for a probe.
func (m *Member) dialed(a memberlist.Address, timeout time.Duration) {
	if a.Name != "" && a.Name != m.o.Name && timeout != streamTimeout {
		m.o.Reach.ProbeFailed(a.Name)
	}
}
