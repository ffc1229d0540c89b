// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

const (
	// judgeAgainAfter is the pause before a server whose clock is off asks the voters again, and before it tries again
	// to transfer its leadership.
	judgeAgainAfter = 5 * time.Second
	// minVoters is the least number of voters of which a majority can say whose clock is wrong.
	minVoters = 3
)

// clockOff is how far this server's clock is ahead of those of a majority, while that is more than
// Options.ClockTolerance.
type clockOff struct{ offset atomic.Pointer[time.Duration] }

func (c *clockOff) isOff() bool { return c.offset.Load() != nil }

func (c *clockOff) get() (by time.Duration, off bool) {
	if by := c.offset.Load(); by != nil {
		return *by, true
	}
	return 0, false
}

// clockJudge finds out whether this server's clock is off. The servers' calls compare clocks anyway (peer/clocks.go).
// One clock that is far from this one does not say which of the two is wrong. So this server compares with all voters
// then, and a majority of them decides.
type clockJudge struct {
	*peers
	leadership *leadership
	judging    atomic.Bool
}

// onCompared is called when this server's clock was compared with another one's.
func (j *clockJudge) onCompared(_ raft.ServerID, o peer.Offset) {
	if !j.hasStarted() {
		return
	}
	if o.By.Abs()-o.Within > j.opts.ClockTolerance {
		j.spawnSingle(&j.judging, j.judge)
	}
}

// judge asks the voters, and continues while this server's clock is off.
func (j *clockJudge) judge() {
	for {
		by, off := j.askVoters(j.ctx)
		if j.ctx.Err() != nil {
			return
		}
		j.setOffset(by, off)
		if !off || !timers.Sleep(j.ctx, judgeAgainAfter) {
			return
		}
	}
}

// setOffset records how far the clock is off, if it is. The loops of a leader stop before the steward transfers the
// leadership.
func (j *clockJudge) setOffset(by time.Duration, off bool) {
	was := j.clockOff.isOff()
	if off {
		j.clockOff.offset.Store(&by)
	} else {
		j.clockOff.offset.Store(nil)
	}
	j.leadership.withhold(off)
	switch {
	case off && !was:
		j.log.Warn("this machine's clock is off from those of a majority of the servers: set it (NTP). Until then this server does not lead, and "+
			"nodes use others", "ahead by", by.Round(time.Second))
	case was && !off:
		j.log.Info("this machine's clock agrees with those of the other servers again")
	}
}

// askVoters compares this server's clock with those of the voters. It returns how far it is ahead of those of a
// majority.
func (j *clockJudge) askVoters(ctx context.Context) (by time.Duration, off bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*j.opts.ElectionTimeout)
	defer cancel()
	voters := j.voters()
	began := time.Now()
	askMembers(ctx, j.withoutSelf(voters), func(ctx context.Context, v raft.Server) (term uint64, ok bool) {
		j.CompareClocks(string(v.Address))
		return j.fetchTerm(ctx, v), true
	}, nil)
	var offsets []time.Duration
	voter := false
	for _, v := range voters {
		voter = voter || v.ID == j.id
		if o, ok := j.Offset(v.ID); ok && !o.At.Before(began) {
			offsets = append(offsets, o.By)
		}
	}
	before, was := j.clockOff.get()
	return judgeClock(offsets, voter, len(voters), j.opts.ClockTolerance, before, was)
}

// judgeClock returns whether a clock is off: by more than the tolerance from a clock with which a majority of the
// voters agrees, while no majority agrees with the clock itself. One that was off stays so while no majority answers,
// until more of the others agree with it than with another clock. offsets say how far the clocks of the other voters
// that answered are ahead of this one. by is how far this one is ahead of the majority's, and before what it was.
func judgeClock(
	offsets []time.Duration, voter bool, voters int, tolerance, before time.Duration, was bool,
) (by time.Duration, off bool) {
	others := offsets
	if voter {
		offsets = append(slices.Clone(offsets), 0)
	}
	agreeing := func(at time.Duration) (n int) {
		for _, o := range offsets {
			if (o - at).Abs() <= tolerance {
				n++
			}
		}
		return n
	}
	most := voters / 2
	if voters < minVoters || agreeing(0) > most {
		return 0, false
	}
	if was {
		if len(others) == 0 {
			return before, true
		}
		most = agreeing(0) - (len(offsets) - len(others)) - 1
	}
	for _, o := range offsets {
		if n := agreeing(o); n > most && o.Abs() > tolerance {
			most, by, off = n, -o, true
		}
	}
	return by, off
}

// transferToRightClock transfers the leadership to a voter whose clock agrees with a majority's, while this leader's
// clock does not. Before next it does not try again.
func (s *steward) transferToRightClock(ctx context.Context, next *time.Time) {
	by, off := s.clockOff.get()
	if !off || time.Now().Before(*next) {
		return
	}
	*next = time.Now().Add(judgeAgainAfter)
	right := slices.DeleteFunc(s.voters(), func(v raft.Server) bool {
		o, ok := s.Offset(v.ID)
		return !ok || (o.By+by).Abs() > s.opts.ClockTolerance
	})
	able := canLead(ctx, s, right, 1)
	if len(able) == 0 {
		return // there is no server that could do better
	}
	s.log.Warn("this machine's clock is off: transferring the leadership to a server whose clock is right", "to", able[0].ID)
	if err := s.transferAt(ctx, able[0]); err != nil && ctx.Err() == nil {
		s.log.Warn("could not transfer the leadership", "to", able[0].ID, "err", err)
	}
}
