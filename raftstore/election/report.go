// SPDX-License-Identifier: Apache-2.0

// Package election decides when a voter becomes a candidate, and when a leader steps down for another one. It is pure:
// its input is what the server has observed, with the time, and its result is one action. Its rules are the tables
// [Rules] and [LeaderRules]. It owns no goroutine, timer or connection, and never calls raft.
package election

import (
	"cmp"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Report is a voter's report about itself when there may be no leader.
type Report struct {
	ID           string
	SinceContact time.Duration `json:"Silent"` // time since it heard the leader
	Follower     bool          // it can become a candidate: it is none yet, does not lead, and waits for no pre-votes
	Leads        bool
	Candidate    bool `json:"Standing"` // it has begun a candidacy, which may still be under way
	Polling      bool // it asks the others, and becomes a candidate if a majority of them misses the leader
	Exited       bool `json:"Ended"` // it has found the leader's process to have exited
	// Unanswered says that the leader gives no answer to its calls. AskerUnanswered says that the server that asks led
	// when its calls to that one got no answer, and none has got one since.
	Unanswered, AskerUnanswered bool   `json:",omitempty"`
	Term                        uint64 // raft's term
	// LogTerm and LogIndex are those of its newest entry. It votes for no server whose log ends earlier.
	LogTerm, LogIndex uint64
	FlushDuration     time.Duration `json:"FlushTakes"` // of a recent write to its disk, or of the one under way if that takes longer
	// VoteFlush is how long a write takes now on the disks whose votes it needs, or [Never] if too few servers may vote
	// for it. It is 0 until it was measured twice.
	VoteFlush time.Duration `json:",omitempty"`
	// ClockOff says that its clock is off from those of a majority.
	ClockOff bool `json:",omitempty"`
	// Reached has the ids of the members that the voter reaches, including its own, if the question asked for them.
	Reached []raft.ServerID `json:",omitempty"`
}

// HasLogOf says whether voter a's log has all entries that b's log has, so that b could vote for a.
func (a Report) HasLogOf(b Report) bool {
	return cmp.Or(cmp.Compare(b.LogTerm, a.LogTerm), cmp.Compare(b.LogIndex, a.LogIndex)) <= 0
}

// isAheadOf says whether a has precedence over b when both could become candidates.
func (a Report) isAheadOf(b Report) bool {
	return a.HasLogOf(b) && (!b.HasLogOf(a) || !a.ClockOff && b.ClockOff || a.ClockOff == b.ClockOff && a.ID < b.ID)
}

// leavesNothing says whether the report a leaves nothing to do for the voter that asked. That is so if a leader exists
// in that voter's term. It is also so if an election is under way in which that voter will be asked for its vote,
// unless it just was.
func (a Report) leavesNothing(own Report) bool {
	later := a.Term > own.Term && (a.Leads || a.Candidate || own.SinceContact < StalledAfter) // otherwise that term's election has failed
	return later || a.Term == own.Term && a.Leads || a.Candidate && a.HasLogOf(own)
}

// Misses says whether the voter of a report misses the leader. agreeAfter is [Timeouts.AgreeAfter].
func (a Report) Misses(agreeAfter time.Duration) bool {
	return a.Exited || a.Unanswered || a.SinceContact >= agreeAfter
}

const (
	// StalledAfter is how long a write may wait for a leader's disk before the others should elect another leader.
	StalledAfter = time.Second
	// SlowestFlush is the longest flush duration that counts. A disk that stalled for minutes must not make the next
	// election take as long.
	SlowestFlush = 3 * time.Second
	// Never is a duration that is far longer than anything takes.
	Never = 1000 * time.Hour
	// fasterBy is the factor by which other disks have to be faster for another leader or candidate to be worth an
	// election. The election itself takes several flushes.
	fasterBy = 3
)

// FlushTimes is how long the other voters' disks take for a write, as these voters report it.
type FlushTimes struct {
	With    time.Duration // on the slowest disk of the fastest majority that includes this server
	Without time.Duration // the same without this server, for a majority that one of its members reaches; Never if there is none
}

// FlushTimesOf returns the flush times of the voters that reported them; voters is the number of all. If too few did
// for a majority without this server, or none of them reaches such a majority, no other server could do better.
func FlushTimesOf(reports []Report, voters int) FlushTimes {
	majority, out := voters/2+1, FlushTimes{Without: Never}
	all := flushesOf(reports, nil)
	if n := min(majority-1, len(all)); n > 0 {
		out.With = all[n-1]
	}
	for _, a := range reports {
		if flushes := flushesOf(reports, a.Reached); len(flushes) >= majority {
			out.Without = min(out.Without, max(flushes[majority-1], min(a.FlushDuration, SlowestFlush)))
		}
	}
	return out
}

// flushesOf returns the flush durations of the voters that reported them, the shortest first. If among is not nil, it
// returns only those of voters in among. A duration counts as SlowestFlush at most.
func flushesOf(reports []Report, among []raft.ServerID) []time.Duration {
	var out []time.Duration
	for _, a := range reports {
		if among == nil || slices.Contains(among, raft.ServerID(a.ID)) {
			out = append(out, min(a.FlushDuration, SlowestFlush))
		}
	}
	slices.Sort(out)
	return out
}

// VoteFlush returns how long a write takes on the disks of the other voters that this server needs to be elected. It
// returns Never if too few of those that reported may vote for this server.
func VoteFlush(own Report, reports []Report, voters int) time.Duration {
	votes := slices.DeleteFunc(slices.Clone(reports), func(a Report) bool {
		return !own.HasLogOf(a) || own.Candidate && a.Candidate && a.Term == own.Term // that voter has voted for itself
	})
	if len(votes) < voters/2 {
		return Never
	}
	return FlushTimesOf(votes, voters).With
}
