// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// wallClocks are the wall clocks of a scenario's servers.
type wallClocks struct {
	mu  sync.Mutex
	off map[string]time.Duration // by the server's name
}

func newWallClocks() *wallClocks { return &wallClocks{off: map[string]time.Duration{}} }

// tune gives a server its clock.
func (w *wallClocks) tune(o *Options) {
	name := o.NodeID
	o.Wall = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return time.Now().Add(w.off[name])
	}
}

func (w *wallClocks) set(n *node, off time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.off[n.name] = off
}

// judgedWithin bounds how long it takes until the servers know whose clock is off, with calls under way.
const judgedWithin = 15 * time.Second

// judges waits until the clocks of the given servers, and of no other ones, count as off.
func (c *cluster) judges(what string, off ...*node) {
	c.Helper()
	c.eventually(what, judgedWithin, func() bool {
		for _, n := range c.nodes {
			_, is := n.store.Health().ClockOff()
			want := false
			for _, o := range off {
				want = want || o == n
			}
			if is != want {
				return false
			}
		}
		return true
	})
}

// The clock of a leader or of a follower is set wrong. Writes go on. That server knows that its clock is off, and by
// how much. It stops its loops and does not lead, until its clock is right.
func TestScenarioWrongClock(t *testing.T) {
	for _, servers := range []int{3, 5} {
		for _, role := range []string{"leader", "follower"} {
			for _, off := range []time.Duration{-400 * 24 * time.Hour, -3 * time.Hour, 400 * 24 * time.Hour} {
				t.Run(fmt.Sprintf("%d servers, the %s, %v", servers, role, off), func(t *testing.T) {
					clocks := newWallClocks()
					scenarioOf(t, 1, servers, clocks.tune, func(c *cluster) {
						wrong := c.leader()
						if role == "follower" {
							wrong = c.others(wrong)[0]
						}
						loops := wrong.store.Leadership()
						w := c.work(2)
						c.pass(5 * time.Second)
						clocks.set(wrong, off)
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
						answer, err := peersOf(wrong.store).election.serveReach(c.ctx, reachRequest{Majority: true})
						testenv.True(c, err == nil && answer.Unfit, "it is fit to lead: %+v, %v", answer, err)

						// The next leader is lost too: the one with the wrong clock does not follow it.
						if servers == 5 {
							lost := c.leader()
							lost.crash()
							c.pass(5 * time.Second)
							testenv.True(c, c.leader() != wrong, "the server whose clock is off leads")
							lost.start()
						}
						clocks.set(wrong, 0)
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

// No majority agrees: no clock counts as off, and nothing changes.
func TestScenarioClocksWithoutMajority(t *testing.T) {
	for name, off := range map[string][]time.Duration{
		"three that differ": {0, -3 * time.Hour, 3 * time.Hour}, "two": {0, 400 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			clocks := newWallClocks()
			scenarioOf(t, 1, len(off), clocks.tune, func(c *cluster) {
				w, leader := c.work(2), c.leader()
				for i, n := range c.nodes {
					clocks.set(n, off[i])
				}
				for range 60 {
					c.pass(time.Second)
					for _, n := range c.nodes {
						_, is := n.store.Health().ClockOff()
						testenv.False(c, is, "%s counts as one whose clock is off", n.name)
					}
				}
				testenv.True(c, c.leader() == leader, "another server leads")
				w.stop()
			})
		})
	}
}

// A server whose clock is off still leads where no other can: a clock ends no majority.
func TestScenarioWrongClockIsNeeded(t *testing.T) {
	clocks := newWallClocks()
	scenarioOf(t, 1, 3, clocks.tune, func(c *cluster) {
		w := c.work(1)
		wrong := c.others(c.leader())[0]
		clocks.set(wrong, -3*time.Hour)
		c.judges("its clock is off", wrong)
		lost := c.leader()
		lost.crash()
		c.serves(c.others(lost)...)
		lost.start()
		clocks.set(wrong, 0)
		c.judges("all clocks are right")
		w.stop()
	})
}

// Some of the servers whose clocks are right are lost. The rest are no majority of the voters that could judge a clock,
// but the one that is off stays so, until it is set right.
func TestScenarioWrongClockIsRemembered(t *testing.T) {
	for _, servers := range []int{3, 5} {
		t.Run(fmt.Sprint(servers), func(t *testing.T) {
			clocks := newWallClocks()
			scenarioOf(t, 1, servers, clocks.tune, func(c *cluster) {
				w := c.work(1)
				wrong := c.others(c.leader())[0]
				clocks.set(wrong, -400*24*time.Hour)
				c.judges("its clock is off", wrong)
				right := c.others(wrong)
				lost, left := right[:servers/2], right[servers/2:]
				for _, n := range lost {
					n.crash()
				}
				for range 30 {
					c.pass(time.Second)
					_, off := wrong.store.Health().ClockOff()
					c.endIf(!off, "%s counts as one whose clock is right", wrong.name)
				}
				c.endIf(wrong.leads(), "the server whose clock is off leads")
				for _, n := range left {
					_, off := n.store.Health().ClockOff()
					c.failIf(off, "%s counts as one whose clock is off", n.name)
				}
				clocks.set(wrong, 0)
				c.eventually("its clock is right", judgedWithin, func() bool {
					_, off := wrong.store.Health().ClockOff()
					return !off
				})
				for _, n := range lost {
					n.start()
				}
				w.stop()
			})
		})
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
