// SPDX-License-Identifier: Apache-2.0

package metrics

import "time"

// A Source says how a store is at the moment. It must not wait for anything:
// a scrape may come while the disk stalls or while there is no leader.
type Source interface {
	Sample() Sample
}

// A Sample is how a store is at one moment.
type Sample struct {
	Version string // of etcd, whose contract it is
	Member  uint64 // this server's number in etcd's protocol

	HasLeader, Leads, Learner bool
	LeaderChanges             uint64 // seen since the start
	Voters, Members           int
	Term                      uint64
	Committed, Applied        uint64 // indexes of the log

	Keys, Revision, Compacted int64
	LiveBytes, TotalBytes     int64 // of current values; of history too
	QuotaBytes                int64
	Leases                    int

	Watches       int // streams of events
	BehindWatches int // of them, those that read the history to catch up
	PendingEvents int // in queues
	Events        uint64

	ForwardedWrites uint64 // calls to the leader, each with one write or many
	ReadRounds      uint64 // confirmations of reads, each for one read or many

	LogSize      int64         // of the log's files, in bytes
	Stalled      time.Duration // how long the oldest write under way waits for the disk
	SnapshotSize int64         // bytes of the newest snapshot's file, 0 if there is none
	SnapshotTime time.Time     // when it was taken, zero if there is none

	// Refusing is why new writes are refused, or RefusingNone.
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

// A Peer is another server as this one sees it.
type Peer struct {
	Member      uint64
	LastContact time.Time // zero if never
	Sent        uint64    // bytes
	Received    uint64    // bytes
	Failures    uint64    // of messages and calls to it
	RTT         *Histogram
}
