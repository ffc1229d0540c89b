// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"time"

	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// Health is what this server knows of its own state: of its disk, and whether the others count it as a member and have
// a leader.
type Health struct {
	*replica
	leader *leaderBoard
	quota  *quota
}

// Health returns what this server knows of its own state.
func (s *Store) Health() Health { return Health{s.replica, s.leader, s.quota} }

// Stalled returns for how long the oldest unfinished write to the disk has been waiting, 0 if there is none. Until that
// write ends this server learns of no newer write to the store.
func (h Health) Stalled() time.Duration { return h.dir.Stalled() }

// Removed says whether the others have a leader and do not count this server as a member, as far as they could be
// asked. A removed server no longer serves clients.
func (h Health) Removed() bool {
	w := h.leader.reportedLeader.Load()
	return !h.leader.hasLeader() && w != nil && w.removed
}

// MembershipConfirmed says whether another server has confirmed since this start that this server is a member, and none
// has denied it since. A server confirms it by leading this one, or when it is asked.
func (h Health) MembershipConfirmed() bool { return h.leader.membershipConfirmed.Load() }

// CutOff says whether the others count this server and have a leader that this server does not hear, or cannot call.
// OtherLeader is then a server that reaches that leader.
func (h Health) CutOff() bool {
	w := h.leader.reportedLeader.Load()
	return !h.leader.hasLeader() && w != nil && !w.removed && w.address != ""
}

// OtherLeader returns the address of another server that leads, as far as this one knows, or learned when it was
// removed. If this server alone is cut off from the leader, it returns the address of a server that reaches the leader.
// It returns "" if there is none. This server may not know the leader as a member: while its disk is stalled it learns
// of no new members.
func (h Health) OtherLeader() string {
	if w := h.leader.reportedLeader.Load(); w != nil && !h.leader.hasLeader() {
		return w.address
	}
	lead, _ := h.leader.get()
	if lead.Self {
		return ""
	}
	return dialAddress(lead.Address)
}

// WithoutLeader returns since when this server has had no leader that it can use, the zero time while it has one. A
// leader can be used if it is this server, or if this server hears it, gets answers to its calls, and gets its entries.
// The channel is closed when that begins or ends.
// A store that has just been opened has no leader.
func (h Health) WithoutLeader() (since time.Time, changed <-chan struct{}) {
	return h.leader.leaderless()
}

// ClockOff says whether this machine's clock is off from those of a majority of the voters by more than certificates
// allow, and how far it is ahead of them. by is negative if it is behind.
func (h Health) ClockOff() (by time.Duration, off bool) { return h.clockOff.get() }

// JoinRefused returns why the cluster does not admit this server, "" if it does or has not been asked.
func (h Health) JoinRefused() string {
	if reason := h.leader.joinRefused.Load(); reason != nil {
		return *reason
	}
	return ""
}

// Quota returns how many bytes of keys and history the store may have: the cluster's quota, as far as this server knows
// it, and else this server's own (Options.QuotaBytes).
func (h Health) Quota() int64 { return h.quota.bytes() }

// Refusing returns why this server refuses its clients' writes, as the metric coracle_store_writes_refused does. The
// quota is the leader's to check, so only the leader refuses writes for it.
func (h Health) Refusing() metrics.Refusal { return h.quota.reason() }
