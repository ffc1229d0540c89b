// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// judgedWithin bounds how long it takes until the servers know whose clock is off, with calls under way.
const judgedWithin = 15 * time.Second

// judges waits until the clocks of the given servers, and of no other ones, count as off.
func (c *cluster) judges(what string, off ...*node) {
	c.Helper()
	c.eventually(what, judgedWithin, func() bool { return c.clocksOff(off...) })
}

// clocksOff says whether the clocks of the given servers count as off, and those of no others that run.
func (c *cluster) clocksOff(off ...*node) bool {
	return !slices.ContainsFunc(c.nodes, func(n *node) bool {
		s := n.running()
		if s == nil {
			return false
		}
		_, is := s.Health().ClockOff()
		return is != contains(off, n)
	})
}

// The clock of a leader or of a follower is set wrong. Writes go on. That server knows that its clock is off, and by
// how much. It stops its loops and does not lead, until its clock is right.
func TestScenarioWrongClock(t *testing.T) {
	for _, servers := range []int{3, 5} {
		for _, role := range []string{"leader", "follower"} {
			for _, off := range []time.Duration{-400 * 24 * time.Hour, -3 * time.Hour, 400 * 24 * time.Hour} {
				t.Run(fmt.Sprintf("%d servers, the %s, %v", servers, role, off), func(t *testing.T) {
					scenario(t, 1, servers, func(c *cluster) {
						wrong := c.leader()
						if role == "follower" {
							wrong = c.others(wrong)[0]
						}
						loops := wrong.store.Leadership()
						w := c.work(2)
						c.pass(5 * time.Second)
						wrong.off.Store(int64(off))
						c.judges("its clock is off", wrong)
						by, _ := wrong.store.Health().ClockOff()
						testenv.True(c, (by-off).Abs() < 2*time.Second, "it is ahead by %v, and counts as by %v", off, by)
						c.eventually("another server leads", judgedWithin, func() bool { return c.leader() != wrong })
						c.eventually("its loops have stopped", judgedWithin, func() bool {
							select {
							case now := <-loops:
								return !now.Leader
							default:
								return role == "follower"
							}
						})
						c.serves(c.nodes...)
						answer, err := peersOf(wrong.store).elections.serveReach(c.ctx, reachRequest{Majority: true})
						testenv.True(c, err == nil && answer.Unfit, "it is fit to lead: %+v, %v", answer, err)

						// The next leader is lost too: the one with the wrong clock does not follow it.
						if servers == 5 {
							lost := c.leader()
							lost.crash()
							c.pass(5 * time.Second)
							testenv.True(c, c.leader() != wrong, "the server whose clock is off leads")
							lost.start()
						}
						wrong.off.Store(int64(0))
						c.judges("all clocks are right")
						now := c.leader()
						c.eventually("it can lead again", time.Minute, func() bool {
							_ = transferTo(c.ctx, now.store.replica, now.store.replication, wrong.store.replica.memberID)
							return c.leader() == wrong
						})
						w.stop()
					})
				})
			}
		}
	}
}

// TestClockThatIsOff: a majority that agrees decides.
func TestClockThatIsOff(t *testing.T) {
	const h = time.Hour
	for name, tt := range map[string]struct {
		offsets []time.Duration
		voters  int
		none    bool // this server has no vote
		was     bool // it was off, by -2h
		by      time.Duration
		off     bool
	}{
		"all agree":                        {offsets: []time.Duration{h / 2, -h / 2}, voters: 3},
		"this one is behind":               {offsets: []time.Duration{3 * h, 3*h + time.Minute}, voters: 3, by: -3 * h, off: true},
		"this one is ahead":                {offsets: []time.Duration{-9600 * h, -9600 * h}, voters: 3, by: 9600 * h, off: true},
		"another one":                      {offsets: []time.Duration{3 * h, 0}, voters: 3},
		"one does not answer":              {offsets: []time.Duration{3 * h}, voters: 3},
		"all differ":                       {offsets: []time.Duration{3 * h, -3 * h}, voters: 3},
		"half of four":                     {offsets: []time.Duration{0, 3 * h, 3 * h}, voters: 4},
		"three of four":                    {offsets: []time.Duration{3 * h, 3 * h, 3 * h}, voters: 4, by: -3 * h, off: true},
		"two of five, one does not answer": {offsets: []time.Duration{0, 3 * h, 3 * h}, voters: 5},
		"three of five":                    {offsets: []time.Duration{0, 3 * h, 3 * h, 3 * h}, voters: 5, by: -3 * h, off: true},
		"a majority on both sides":         {offsets: []time.Duration{h, h, 2 * h, -h}, voters: 5},
		"no vote":                          {offsets: []time.Duration{3 * h, 3 * h, -h}, voters: 3, none: true, by: -3 * h, off: true},
		"no vote, two voters differ":       {offsets: []time.Duration{3 * h, -3 * h}, voters: 3, none: true},
		"the only voter":                   {offsets: []time.Duration{3 * h}, voters: 1, none: true},
		"off, a right one is lost":         {offsets: []time.Duration{3 * h}, voters: 3, was: true, by: -3 * h, off: true},
		"off, none answers":                {voters: 3, was: true, by: -2 * h, off: true},
		"off, one agrees":                  {offsets: []time.Duration{3 * h, 3 * h, 0}, voters: 5, was: true, by: -3 * h, off: true},
		"off, as many agree":               {offsets: []time.Duration{3 * h, 0}, voters: 5, was: true, by: -3 * h, off: true},
		"off, set right":                   {offsets: []time.Duration{0}, voters: 3, was: true},
		"off, set right, one is wrong":     {offsets: []time.Duration{3 * h, 0, 0}, voters: 7, was: true},
		"off, no vote, set right":          {offsets: []time.Duration{0}, voters: 3, none: true, was: true},
		"off, too few voters are left":     {offsets: []time.Duration{3 * h}, voters: 2, was: true},
	} {
		by, off := judgeClock(tt.offsets, !tt.none, tt.voters, h, -2*h, tt.was)
		testenv.True(t, by == tt.by && off == tt.off, "%s: %v, %v", name, by, off)
	}
}
