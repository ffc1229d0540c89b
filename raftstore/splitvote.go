// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"time"
)

// A candidate may wait long for votes that do not come: from a voter that it cannot reach, from a candidate of the same
// term, or from one with a stalled disk that still answers. Where disks stalled a moment ago raft waits 12 to 24 s for
// them. So a candidate measures how long a write takes on the disks whose votes it needs. A voter that needs only votes
// of faster disks does not wait for that candidate.

// measureVotes measures electionState.VoteFlush while this server is a candidate. It takes the smaller of two
// measurements: an answer may be late, and a disk that has not flushed since the leader was heard seems slow the first
// time. A candidate beside this server takes a newer term than this server's. So nothing is measured until that
// term is on this server's disk, unless the disk stalls.
func (e *election) measureVotes(ctx context.Context) {
	last, own := e.lastCandidacy.Load(), e.ownState()
	if last == nil || !own.Candidate {
		return
	}
	now := e.dir.Stalled()
	switch {
	case own.Term > last.term:
		now = e.voteFlushOf(ctx, own, e.pollVoters(ctx, "", candidacyDelay))
	case now < stalledAfter:
		return
	}
	last.voteFlush.Store(int64(min(now, last.measured)))
	last.measured = now
}

// voteFlushOf returns how long a write takes now on the disks that this server needs to be elected. It returns never if
// too few voters have answered that may vote for this server.
func (e *election) voteFlushOf(ctx context.Context, own electionState, answers []electionState) time.Duration {
	voters := e.voters()
	votes := slices.DeleteFunc(slices.Clone(answers), func(a electionState) bool {
		return !own.reaches(a) || own.Candidate && a.Candidate && a.Term == own.Term // that voter has voted for itself
	})
	if len(votes) < voters/2 {
		return never
	}
	return max(paceOf(votes, voters).withThis, e.flushDurationNow(ctx, e.question().Within))
}

// faster says whether this voter would be elected much sooner than a candidate for which others wait.
func (e *election) faster(ctx context.Context, own, candidate electionState, answers []electionState) bool {
	return candidate.Candidate && candidate.Term <= own.Term && candidate.VoteFlush > 0 &&
		e.leaderMissedFor(stalledAfter) && candidate.VoteFlush > fasterBy*e.voteFlushOf(ctx, own, answers)
}

// leaderMissedFor says whether this voter has heard no leader for longer than d.
func (e *election) leaderMissedFor(d time.Duration) bool { return time.Since(e.LeaderContact()) > d }
