// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"

	"github.com/coracle-k8s/coracle/internal/version"
)

// delegate gives memberlist this member's metadata.
type delegate struct{ m *Member }

func (d delegate) NodeMeta(int) []byte {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.raw != nil {
		return d.m.raw
	}
	return d.m.meta.encode()
}

// byeMessage is the first byte of a message that members send beside memberlist's own. The name of the member that
// stops follows. memberlist's events do not distinguish a stopped member from an unresponsive one.
const byeMessage = 1

// NotifyMsg handles a message of another member.
func (d delegate) NotifyMsg(text []byte) {
	if len(text) < 2 {
		return
	}
	switch name := string(text[1:]); text[0] {
	case byeMessage:
		d.m.roster.noteLeaving(name)
		d.m.o.Reach.NodeLeft(name)
	case failureMessage:
		d.m.o.Reach.PeerReportedFailure(name)
	default: // of a newer version
	}
}

// announceLeaving sends all live members, once, that this one stops.
func (m *Member) announceLeaving() {
	bye := append([]byte{byeMessage}, m.o.Name...)
	for _, n := range m.list.Members() {
		if n.Name != m.o.Name {
			if err := m.list.SendBestEffort(n, bye); err != nil {
				m.o.Logger.Debug("gossip: a member could not be notified that this machine stops", "member", n.Name, "error", err)
			}
		}
	}
}

// Members exchange no other data.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// events updates the roster. memberlist calls its methods one at a time and holds its lock: they must not call a
// function of memberlist that takes that lock.
type events struct{ m *Member }

func (e events) NotifyJoin(n *memberlist.Node) {
	before, after := e.m.recordMember(n)
	if !after.Self {
		e.m.wake()
		e.m.o.Logger.Info("a member has joined", "member", n.Name, "role", after.Role, "address", after.Address, "version", after.Version,
			"before", before.State)
	}
}

func (e events) NotifyUpdate(n *memberlist.Node) { e.m.recordMember(n) }

func (e events) NotifyLeave(n *memberlist.Node) {
	if e.m.runEnded.Load() {
		return
	}
	switch after := e.m.roster.markUnresponsive(n.Name); {
	case after.Self:
	case after.State == Left:
		e.m.o.Reach.NodeLeft(n.Name)
		e.m.o.Logger.Info("a member has stopped", "member", n.Name, "role", after.Role, "address", after.Address)
	default:
		e.m.o.Logger.Warn("a member is unresponsive", "member", n.Name, "role", after.Role, "address", after.Address)
		e.m.o.Reach.NodeLeft(n.Name) // its machine may fail next, and no member probes it any more
		e.m.o.Reach.ProbeFailed(n.Name)
		if e.m.o.Suspect != nil {
			e.m.o.Suspect(n.Name)
		}
	}
}

// recordMember records what memberlist knows of a live member. One whose metadata cannot be decoded is a member
// nevertheless.
func (m *Member) recordMember(n *memberlist.Node) (before, after Info) {
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		m.log.warnOnce(fmt.Sprintf("the metadata of the member %s cannot be read: it may run another version of coracle", n.Name), "error", err)
	}
	if err == nil && meta.Protocol < 1<<31 && !version.Understands(int(meta.Protocol)) {
		m.log.warnOnce(fmt.Sprintf("the member %s runs coracle %s with protocol %d, and this machine has %d: only versions with the same or neighbouring protocols "+
			"can be in one cluster; update the older one",
			n.Name, meta.Version, meta.Protocol, version.Protocol()))
	}
	ip, _ := netip.AddrFromSlice(n.Addr)
	if n.Name != m.o.Name {
		m.o.Reach.NodeJoined(n.Name, n.Port)
	}
	return m.roster.update(n.Name, func(i *Info) {
		i.State, i.Address, i.Meta = Alive, netip.AddrPortFrom(ip.Unmap(), n.Port), meta
	})
}

// names rejects members whose name cannot be a Kubernetes Node's, and more members than there can be, before anything
// about them is stored.
type names struct{ m *Member }

func (n names) NotifyAlive(member *memberlist.Node) error {
	if err := checkName(member.Name); err != nil {
		return err
	}
	most := maxMembers
	if n.m.o.Most != nil {
		most = cmp.Or(n.m.o.Most(), maxMembers)
	}
	if !n.m.roster.mayJoin(member.Name, most) {
		n.m.log.warnOnce("there are more members than the cluster has nodes; further members are ignored. A machine with the gossip key may "+
			"have announced them falsely. To exclude it: coracle gossip rotate-key",
			"most", most, "refused", member.Name)
		return fmt.Errorf("gossip: there are %d members already", most)
	}
	return nil
}

// conflicts is notified of a second member with the same name.
type conflicts struct{ m *Member }

func (c conflicts) NotifyConflict(existing, other *memberlist.Node) {
	words := fmt.Sprintf("two machines, at %s and %s, both claim to be the node %s; the second is no member until one of them has "+
		"another --node-name",
		existing.Address(), other.Address(), existing.Name)
	c.m.log.warnOnce(words)
}
