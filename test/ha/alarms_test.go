//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
)

// gossipPort is where members hear of one another.
const gossipPort = 6443

// during returns the state before something lasts for a time and after it.
func (c *Cluster) during(t *testing.T, lasts time.Duration, do func() (undo func())) (before, after string) {
	t.Helper()
	state := func(what string) (out string) {
		harness.Eventually(t, soon, what, func() (err error) {
			out, err = c.state(t)
			return err
		})
		return out
	}
	c.WaitWhole()
	before = state("the state before")
	undo := do()
	time.Sleep(lasts) // that nothing happens in a time has no event that ends it
	undo()
	return before, state("the state afterwards")
}

// elections are the lines of the servers' logs about who leads and about disks and processors that stood still, which
// say why leadership moved.
func (c *Cluster) elections() string {
	about := regexp.MustCompile(`(?i)leader|election|vote|candidate|follower|stood still|disk|silent|slow`)
	var b strings.Builder
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "machine %d:\n", s.Number)
		for line := range strings.Lines(s.LogTail(2000)) {
			if about.MatchString(line) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// besideOthers has a scenario that mostly waits run beside others of this package, unless it goes its whole length.
func besideOthers(t *testing.T) {
	if !whole {
		t.Parallel()
	}
}

// TestNoFalseAlarms: machines that get little processor time, gossip that is late and lossy, gossip that is lost one
// way, and a leader that does not hear a node that others hear mark no node and move no leadership.
func TestNoFalseAlarms(t *testing.T) {
	harness.ByHand(t)
	besideOthers(t)
	c := New(t, 3, 2)
	all := append(slices.Clone(c.Servers), c.Agents...)
	pairs := func(f func(from, to *harness.Machine)) {
		for _, from := range all {
			for _, to := range all {
				if from != to {
					f(from.Machine, to.Machine)
				}
			}
		}
	}
	for _, tt := range []struct {
		name         string
		short, whole time.Duration
		do           func() (undo func())
	}{
		{"a fifth of the gossip is lost, the rest is late by 300 ms", 20 * time.Second, 5 * time.Minute, func() func() {
			pairs(func(from, to *harness.Machine) { c.Site.DelayDatagrams(from, to, gossipPort, 300*time.Millisecond, 20) })
			return c.Site.Heal
		}},
		{"no gossip comes from one agent", 20 * time.Second, 5 * time.Minute, func() func() {
			for _, other := range all {
				if other != c.Agents[0] {
					c.Site.LoseDatagrams(c.Agents[0].Machine, other.Machine, gossipPort, 100)
				}
			}
			return c.Site.Heal
		}},
		{"no gossip comes to one agent, nor to the leader", 20 * time.Second, 5 * time.Minute, func() func() {
			for _, to := range []*harness.Server{c.Agents[1], c.MustLeader()} {
				for _, other := range all {
					if other != to {
						c.Site.LoseDatagrams(other.Machine, to.Machine, gossipPort, 100)
					}
				}
			}
			return c.Site.Heal
		}},
		{"the leader and an agent hear nothing of one another", 20 * time.Second, 5 * time.Minute, func() func() {
			c.Site.Split(c.MustLeader().Machine, c.Agents[0].Machine)
			return c.Site.Heal
		}},
		// In its whole length only: it takes the processors from the scenarios that make test runs beside this one.
		// Less than a machine wants: it stands still for most of each tenth of a second.
		{"an agent has a fiftieth of a processor, all share two with four busy processes", 0, 30 * time.Minute, func() func() {
			stop := burn(t, 4)
			c.Agents[0].LimitCPU(2)
			return func() {
				c.Agents[0].LimitCPU(0)
				stop()
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.short == 0 && !whole {
				t.Skip("it takes the processors from the scenarios that run beside this one; make e2e-ha runs it")
			}
			lasts := tt.short
			if whole {
				lasts = tt.whole
			}
			if before, after := c.during(t, lasts, tt.do); after != before {
				t.Errorf("it was\n%s\nand is after %v\n%s\n%s", before, lasts, after, c.elections())
			}
		})
	}
}

// state is what must not change: when each node became ready, and at the whole length the term. At the short length the
// scenarios beside this one use the processors up now and then, and a leader that gets none for a third of a second
// gives up by right.
func (c *Cluster) state(t *testing.T) (string, error) {
	leader, term, err := c.Leader(t.Context(), c.Servers)
	if err != nil {
		return "", err
	}
	list, err := c.Ask(leader).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	var out string
	if whole {
		out = fmt.Sprintf("machine %d leads in term %d\n", leader.Number, term)
	}
	for i := range list.Items {
		for _, condition := range list.Items[i].Status.Conditions {
			if condition.Type == corev1.NodeReady {
				out += fmt.Sprintf("%s: Ready=%s since %s, taints %v\n", list.Items[i].Name, condition.Status,
					condition.LastTransitionTime.Format(time.TimeOnly), list.Items[i].Spec.Taints)
			}
		}
	}
	return out, nil
}
