// SPDX-License-Identifier: Apache-2.0

package metrics

import "time"

// A Source returns the present numbers of a store. It must not block: a scrape may happen while the disk stalls or
// while there is no leader.
type Source interface {
	Sample() Sample
}

// A Sample has the numbers of a store at one moment.
type Sample struct {
	Version string // version of etcd's contract
	Member  uint64 // this server's number in etcd's protocol

	HasLeader, Leads, Learner bool
	LeaderChanges             uint64 // seen since the start of the process
	Voters, Members           int
	Term                      uint64
	Committed, Applied        uint64 // indexes of the log

	Keys, Revision, Compacted int64
	LiveBytes, TotalBytes     int64 // bytes of current values; with those of history
	QuotaBytes                int64
	Leases                    int

	Watches       int // number of watches
	BehindWatches int // number of watches that read the history to catch up
	PendingEvents int // number of events in queues
	Events        uint64

	ForwardedWrites uint64 // number of calls to the leader, each with one or more writes
	ReadRounds      uint64 // number of confirmations of reads, each for one or more reads

	LogSize      int64         // bytes of the log's files
	Stalled      time.Duration // for how long the oldest write under way has waited for the disk
	SnapshotSize int64         // bytes of the newest snapshot's file, 0 if there is none
	SnapshotTime time.Time     // when it was taken, zero if there is none

	// Refusing is the reason why new writes are refused, or RefusingNone.
	Refusing Refusal

	Peers []Peer
}

// A Refusal is a reason to refuse writes.
type Refusal string

// The reasons.
const (
	RefusingNone    Refusal = ""
	RefusingSpace   Refusal = "disk_full"
	RefusingFailing Refusal = "disk_failing"
	RefusingQuota   Refusal = "quota"
)

var refusals = []Refusal{RefusingSpace, RefusingFailing, RefusingQuota}

// A Peer is another server, as far as this one knows.
type Peer struct {
	Member      uint64
	LastContact time.Time // zero if never
	Sent        uint64    // bytes
	Received    uint64    // bytes
	Failures    uint64    // of messages and calls to it
	RTT         *Histogram
}
