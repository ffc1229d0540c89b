// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"time"
)

// A candidate may wait for votes that do not come for long: of a voter that it does not reach, of one that stands in
// the same term, or of one whose disk stalls and which still answers. Where disks stalled a moment ago raft waits 12 to
// 24 s for them. So a candidate measures what a write takes on the disks whose votes it needs, and a voter that needs
// quicker ones alone does not wait for it.

// measureVotes measures standing.VoteFlush while this server stands. It goes by the smaller one of two measurements: an
// answer may be late, and a disk that has not flushed since the leader was heard looks slow the first time. Who stands
// beside this server takes a newer term than its own. So nothing is measured until that is on its disk, unless the disk
// stalls.
func (e *election) measureVotes(ctx context.Context) {
	last, own := e.stood.Load(), e.standing()
	if last == nil || !own.Standing {
		return
	}
	now := e.dir.Stalled()
	switch {
	case own.Term > last.term:
		now = e.voteFlushOf(ctx, own, e.standings(ctx, "", standAfter))
	case now < stalledAfter:
		return
	}
	last.voteFlush.Store(int64(min(now, last.measured)))
	last.measured = now
}

// voteFlushOf is what a write takes now on the disks that this server needs to be elected, and never if too few have
// answered that may vote for it.
func (e *election) voteFlushOf(ctx context.Context, own standing, answers []standing) time.Duration {
	voters := e.voters()
	votes := slices.DeleteFunc(slices.Clone(answers), func(a standing) bool {
		return !own.reaches(a) || own.Standing && a.Standing && a.Term == own.Term // that one has voted for itself
	})
	if len(votes) < voters/2 {
		return never
	}
	return max(paceOf(votes, voters).withThis, e.flushDurationNow(ctx, e.question().Within))
}

// faster says whether this voter would be elected long before a candidate that others wait for.
func (e *election) faster(ctx context.Context, own, candidate standing, answers []standing) bool {
	return candidate.Standing && candidate.Term <= own.Term && candidate.VoteFlush > 0 &&
		e.leaderMissedFor(stalledAfter) && candidate.VoteFlush > fasterBy*e.voteFlushOf(ctx, own, answers)
}

// leaderMissedFor says whether this voter has heard no leader for so long.
func (e *election) leaderMissedFor(d time.Duration) bool { return time.Since(e.LeaderHeard()) > d }
