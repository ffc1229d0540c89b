//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
)

// everywhere is a Deployment with a pod on each agent and a Service before it. The pods are in their machines' own network,
// so that only the Service is looked at.
const everywhere = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: everywhere}
spec:
  replicas: 2
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: everywhere}}}]
      containers: [{name: c, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [testbox, serve], ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: everywhere}
spec: {clusterIP: ` + serviceIP + `, selector: {app: everywhere}, ports: [{port: 80, targetPort: 8080}]}
`

const serviceIP = "10.43.99.99"

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
	}
}

// TestFaults: whatever happens to any one machine of three servers and two agents, writes, watches and requests go on, and nothing that
// was acknowledged is lost.
func TestFaults(t *testing.T) {
	c := New(t, 3, 2)
	c.Servers[0].Apply(everywhere)
	harness.Eventually(t, soon, "a pod on each agent", func() error {
		d, err := c.Ask(c.Servers[0]).AppsV1().Deployments("default").Get(t.Context(), "everywhere", metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas != 2 {
			err = fmt.Errorf("%d are ready", d.Status.ReadyReplicas)
		}
		return err
	})
	x := startClients(t, c, "load", serviceIP+":80")
	excused := map[*harness.Server][]window{}
	run := func(name string, victim *harness.Server) {
		t.Helper()
		f := faults()[name]
		began := time.Now()
		what := fmt.Sprintf("machine %d %s", victim.Number, name)
		f.do(c, victim)
		x.writesGoOn(t, time.Now(), victim)
		writes := x.longestGap(began, victim)
		if victim.Role == "agent" {
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
		t.Logf("%s: the others were without an acknowledged write for %v at most; whole %v after its return", what,
			writes.Round(time.Millisecond), time.Since(back).Round(100*time.Millisecond))
		if writes > explainAbove() {
			x.explainWrites(t, began, victim)
			c.explain(t.Logf, Without(c.Servers, victim), began)
		}
		excused[victim] = append(excused[victim], window{began, time.Now()})
	}
	if !whole {
		run("killed", c.MustLeader())
		run("paused", c.usedBy(t, c.Agents[0]))
		run("cut off", c.usedBy(t, c.Agents[0]))
		run("cut off", c.MustLeader())
		run("switched off", Without(c.Servers, c.MustLeader())[0])
		run("switched off", c.Agents[1])
	} else {
		for _, name := range []string{"killed", "paused", "cut off", "switched off"} {
			run(name, c.MustLeader())
			for _, s := range append(append([]*harness.Server(nil), c.Servers...), c.Agents...) {
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
	harness.Eventually(t, soon, asker.Name+" have answers again", func() error {
		if n, _ := asker.Answered(since); n == 0 {
			return errors.New("none has had one")
		}
		return nil
	})
}

// usedBy is the server to which an agent's balancer sends.
func (c *Cluster) usedBy(t *testing.T, a *harness.Server) *harness.Server {
	t.Helper()
	log, err := os.ReadFile(a.Log)
	if err != nil {
		t.Fatal(err)
	}
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
	for a, v := range x.visitors {
		if a == but {
			continue
		}
		harness.Eventually(t, soon, v.Name+" have answers", func() error {
			if steady := v.Steady(); steady < 20 {
				return fmt.Errorf("the last %d had answers", steady)
			}
			return nil
		})
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

// nodeIsOut waits until an agent's node whose machine is gone is not ready. One that was killed or paused alone keeps its pods.
func (x *clients) nodeIsOut(t *testing.T, a *harness.Server, fault string) {
	t.Helper()
	if fault == "killed" || fault == "paused" {
		return
	}
	harness.Eventually(t, soon, "the node is not ready", func() error {
		n, err := x.c.Ask(x.c.Servers[0]).CoreV1().Nodes().Get(t.Context(), a.NodeName(), metav1.GetOptions{})
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
