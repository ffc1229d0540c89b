// SPDX-License-Identifier: Apache-2.0

package raftstore

import "time"

// Health is what this server knows of itself: how its disk does, and whether the others count it and have a leader.
type Health struct {
	*replica
	leader *leaderBoard
}

// Health gives what this server knows of itself.
func (s *Store) Health() Health { return Health{s.replica, s.leader} }

// Stalled returns how long the oldest write that waits for the disk has been doing so, 0
// if there is none. Until it ends this server learns of no newer write.
func (h Health) Stalled() time.Duration { return h.dir.Stalled() }

// Removed says whether the others have a leader and do not count this server among
// them, as far as they could be asked: it serves no client any more.
func (h Health) Removed() bool {
	w := h.leader.without.Load()
	return !h.leader.hasLeader() && w != nil && w.removed
}

// MembershipConfirmed says whether another server has said since this start, and none has denied since, that the
// cluster counts this one: by leading it, or when it was asked.
func (h Health) MembershipConfirmed() bool { return h.leader.counted.Load() }

// CutOff says whether the others have a leader whom this server does not hear although they count it: another server,
// OtherLeader, reaches it.
func (h Health) CutOff() bool {
	w := h.leader.without.Load()
	return !h.leader.hasLeader() && w != nil && !w.removed && w.address != ""
}

// OtherLeader is the address of another server that leads, as far as this one knows, or has heard when it was removed;
// of one that reaches it if this server is cut off from it alone; "" if there is none. It may be one that this server
// does not know as a member: while its disk is stalled it learns of none.
func (h Health) OtherLeader() string {
	lead, _ := h.leader.get()
	if w := h.leader.without.Load(); w != nil && !lead.known() {
		return w.address
	}
	if lead.Self {
		return ""
	}
	return dialAddress(lead.Address)
}

// Quota is how many bytes of keys and history the store may have, see Options.QuotaBytes.
func (h Health) Quota() int64 { return h.opts.QuotaBytes }
