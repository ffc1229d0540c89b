//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fault is what happens to one machine, and how it is undone.
type fault struct {
	do   func(c *Cluster, s *harness.Server)
	undo func(c *Cluster, s *harness.Server)
	// lasts is how long it lasts at the least.
	lasts time.Duration
}

func faults() map[string]fault {
	lasts := 5 * time.Second
	if whole {
		lasts = 20 * time.Second
	}
	return map[string]fault{
		"killed": {do: func(_ *Cluster, s *harness.Server) { s.Kill() }, undo: func(_ *Cluster, s *harness.Server) { s.Start() }},
		"paused": {do: func(_ *Cluster, s *harness.Server) { s.Pause() }, undo: func(_ *Cluster, s *harness.Server) { s.Resume() }, lasts: lasts},
		"cut off": {do: func(c *Cluster, s *harness.Server) { c.Site.CutOff(s.Machine) },
			undo: func(c *Cluster, _ *harness.Server) { c.Site.Heal() }, lasts: lasts},
		"switched off": {do: func(_ *Cluster, s *harness.Server) { s.PowerOff() },
			undo: func(_ *Cluster, s *harness.Server) { s.PowerOn(); s.Start() }, lasts: lasts},
		"wiped": {do: func(_ *Cluster, s *harness.Server) { s.PowerOff() }, undo: (*Cluster).comesBackEmpty, lasts: lasts},
	}
}

// everyFault are those of which a machine comes back with what it had.
var everyFault = []string{"killed", "paused", "cut off", "switched off"}

// TestFaultsOfAnyOneMachine: whatever happens to any one machine of three servers and two agents, writes, watches,
// requests and visits go on, and nothing that was acknowledged is lost.
func TestFaultsOfAnyOneMachine(t *testing.T) {
	harness.ByHand(t)
	c := New(t, 3, 2)
	c.faults(t, everyFault, func(run func(name string, victim *harness.Server)) {
		run("paused", c.usedBy(t, c.Agents[0]))
		run("cut off", c.usedBy(t, c.Agents[0]))
		run("switched off", Without(c.Servers, c.MustLeader())[0])
		run("switched off", c.Agents[1])
	})
}

// TestFaultsOfNodes: the same of three servers that run pods, as they do by default, and nothing else.
func TestFaultsOfNodes(t *testing.T) {
	harness.ByHand(t)
	c := NewOfNodes(t, 3, 0)
	c.faults(t, everyFault, func(run func(name string, victim *harness.Server)) {
		run("killed", c.MustLeader())
		run("cut off", c.MustLeader())
		run("switched off", c.MustLeader())
	})
}

// TestFaultsOfIPv6: the same where there is no IPv4.
func TestFaultsOfIPv6(t *testing.T) {
	harness.ByHand(t)
	c := NewOfIPv6(t, 3, 1)
	c.faults(t, everyFault, func(run func(name string, victim *harness.Server)) { run("cut off", c.MustLeader()) })
}

// faults has clients use a cluster while one fault after the other happens to its machines: at the whole length each of
// all to each of them, and otherwise those that short runs. A leader that has just started knows of no node when it was
// heard last, and gives each 40 s (docs/adr/0065): what follows a "killed" at once may take as long.
func (c *Cluster) faults(t *testing.T, all []string, short func(run func(name string, victim *harness.Server))) {
	t.Helper()
	c.serveEverywhere()
	x := startClients(t, c, "load", c.service())
	excused := map[*harness.Server][]window{}
	run := func(name string, victim *harness.Server) {
		t.Helper()
		f := faults()[name]
		began := time.Now()
		what := fmt.Sprintf("machine %d %s", victim.Number, name)
		f.do(c, victim)
		x.writesGoOn(t, time.Now(), victim)
		writes := x.longestGap(began, victim)
		if slices.Contains(c.Nodes(), victim) {
			x.nodeIsOut(t, victim, name)
		}
		x.asksGoOn(t, began, victim)
		x.served(t, began, victim)
		time.Sleep(f.lasts - time.Since(began)) // a fault has to last for a while, and no event ends that
		f.undo(c, victim)
		back := time.Now()
		c.WaitWhole()
		harness.Eventually(t, soon, "writes at all servers go on", func() error { return x.all(back) })
		x.balances(t, victim, back)
		x.steady(t, nil)
		t.Logf("%s: the others were without an acknowledged write for %v at most; whole %v after its return", what,
			writes.Round(time.Millisecond), time.Since(back).Round(100*time.Millisecond))
		if writes > explainAbove() {
			x.explainWrites(t, began, victim)
			c.explain(t.Logf, Without(c.Servers, victim), began)
		}
		excused[victim] = append(excused[victim], window{began, time.Now()})
	}
	if !whole {
		short(run)
	} else {
		for _, name := range all {
			run(name, c.MustLeader())
			for _, s := range append(slices.Clone(c.Servers), c.Agents...) {
				run(name, s)
			}
		}
	}
	x.verify(t, excused)
}

// balances waits until an agent that is back passes requests on to the API. Its node may have been ready all the while.
func (x *clients) balances(t *testing.T, a *harness.Server, since time.Time) {
	t.Helper()
	asker := x.askers[a]
	if asker == nil {
		return // a server
	}
	testenv.Until(t, soon, asker.Name+" have answers again", func() bool {
		n, _ := asker.Answered(since)
		return n != 0
	})
}

// usedBy is the server to which an agent's balancer sends.
func (c *Cluster) usedBy(t *testing.T, a *harness.Server) *harness.Server {
	t.Helper()
	log := testenv.Must(os.ReadFile(a.Log))(t)
	used, at := c.Servers[0], -1
	for _, s := range c.Servers {
		if i := strings.LastIndex(string(log), "the API is reached through another server server="+s.IP+":"); i > at {
			used, at = s, i
		}
	}
	return used
}

// served waits until the Service answers on each machine but one.
func (x *clients) served(t *testing.T, since time.Time, but *harness.Server) {
	t.Helper()
	x.steady(t, but)
	for a, v := range x.visitors {
		if a == but {
			continue
		}
		var last time.Time
		failed, _, _ := v.Failed()
		for _, f := range failed {
			if f.At.After(since) {
				last = f.At
			}
		}
		if !last.IsZero() {
			t.Logf("%s: the last one without an answer %v after the fault", v.Name, last.Sub(since).Round(10*time.Millisecond))
		}
	}
}

// steady waits until the last twenty visits from each machine but one had answers.
func (x *clients) steady(t *testing.T, but *harness.Server) {
	t.Helper()
	for n, v := range x.visitors {
		if n == but {
			continue
		}
		harness.Eventually(t, soon, v.Name+" have answers", func() error {
			if steady := v.Steady(); steady < 20 {
				return fmt.Errorf("the last %d had answers", steady)
			}
			return nil
		})
	}
}

// nodeIsOut waits until a node whose machine is gone is not ready. One whose process was killed or paused alone keeps
// its pods.
func (x *clients) nodeIsOut(t *testing.T, a *harness.Server, fault string) {
	t.Helper()
	if fault == "killed" || fault == "paused" {
		return
	}
	other := Without(x.c.Servers, a)[0]
	harness.Eventually(t, soon, "the node is not ready", func() error {
		n, err := x.c.Ask(other).CoreV1().Nodes().Get(t.Context(), a.NodeName(), metav1.GetOptions{})
		if err == nil && Ready(n) == corev1.ConditionTrue {
			err = fmt.Errorf("it is")
		}
		return err
	})
}

// all says whether each writer has had an acknowledgement after a moment.
func (x *clients) all(after time.Time) error {
	for s, w := range x.writers {
		if acked, errs := w.Acked(); len(acked) == 0 || acked[len(acked)-1].At.Before(after) {
			return fmt.Errorf("none at server %d; errors: %v", s.Number, errs)
		}
	}
	return nil
}
