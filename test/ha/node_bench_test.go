//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
)

// deaths are how long each step took after nodes' machines vanished, and after they were back.
type deaths struct {
	notReady, endpoints, visits, readyAgain, endpointsAgain []time.Duration
}

func (d *deaths) rows(name string) {
	row(name+": its node is not Ready", d.notReady)
	row(name+": its endpoints are not ready", d.endpoints)
	row(name+": the last failed visit from another node was begun", d.visits)
	row("it is back: its node is Ready", d.readyAgain)
	row("it is back: its endpoints are ready", d.endpointsAgain)
}

// TestNodeFailureIsNoticed measures how long a node whose machine vanishes is taken for alive: an agent's, and that of
// the server that leads.
func TestNodeFailureIsNoticed(t *testing.T) {
	fmt.Printf("\n| a node's machine vanishes (each time %v after the cluster is whole) | times | p50 ms | most ms |\n| --- | --- | --- | --- |\n", settled())
	defer func() { fmt.Printf("load at the end: %s\n", load()) }()
	t.Run("agent", func(t *testing.T) {
		c := New(t, 3, 2)
		c.nodesGo(t, "an agent's", func() *harness.Server { return c.Agents[1] })
	})
	t.Run("leader", func(t *testing.T) {
		c := NewOfNodes(t, 3, 0)
		c.nodesGo(t, "the leader's", c.MustLeader)
	})
}

// TestAgentAway measures what is noticed of an agent's process that is away for less than the 40 s for which a machine
// that answers is left alone: visits from another node to a Service with a pod on each node, and for how long the node
// or its endpoint were not ready.
func TestAgentAway(t *testing.T) {
	away := seconds("CORACLE_HA_AWAY", 30*time.Second)
	c := New(t, 3, 2)
	c.serveEverywhere()
	victim, other := c.Agents[1], c.Agents[0]
	fmt.Printf("\n| an agent's process is away for %v | times | visits | of them failed | failed once | ms not ready |\n| --- | --- | --- | --- | --- | --- |\n", away)
	for _, f := range []struct {
		name     string
		do, undo func()
	}{{"killed", victim.Kill, victim.Start}, {"paused", victim.Pause, victim.Resume}} {
		var visits, failedVisits, once int
		var notReady time.Duration
		for range times() {
			c.WaitWhole()
			time.Sleep(settled()) // for as long as the measurement is to have it
			ctx, cancel := context.WithCancel(t.Context())
			visitor := NewAsker("visits", visit(other.Machine, c.service()))
			done := make(chan struct{})
			go func() {
				defer close(done)
				visitor.Run(ctx)
			}()
			f.do()
			notReady += c.notReadyDuring(t, victim, away)
			f.undo()
			c.WaitWhole()
			cancel()
			<-done
			failed, asked, retried := visitor.Failed()
			visits, failedVisits, once = visits+asked, failedVisits+len(failed), once+retried
		}
		fmt.Printf("| %s | %d | %d | %d | %d | %.0f |\n", f.name, times(), visits, failedVisits, once, ms(notReady))
	}
	fmt.Printf("load at the end: %s\n", load())
}

// notReadyDuring is for how long of a time a node or its endpoint of the Service everywhere is not ready.
func (c *Cluster) notReadyDuring(t *testing.T, s *harness.Server, during time.Duration) (out time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), during)
	defer cancel()
	api := c.Ask(c.Servers[0])
	for last := time.Now(); ctx.Err() == nil; pauseFor(ctx, retryAfter) { // between two looks
		n, err := api.CoreV1().Nodes().Get(ctx, s.NodeName(), metav1.GetOptions{})
		slices, err2 := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=everywhere"})
		now := time.Now()
		if err == nil && err2 == nil && (Ready(n) != corev1.ConditionTrue || !servesOn(slices.Items, s.NodeName())) {
			out += now.Sub(last)
		}
		last = now
	}
	return out
}

func (c *Cluster) nodesGo(t *testing.T, name string, pick func() *harness.Server) {
	t.Helper()
	c.serveEverywhere()
	var d deaths
	for range times() {
		c.WaitWhole()
		time.Sleep(settled()) // for as long as the measurement is to have it
		c.nodeGoes(t, pick(), &d)
		fmt.Printf("  %s: not Ready %.0f ms, endpoints %.0f, visits %.0f; back: Ready %.0f, endpoints %.0f; load %s\n", name, ms(last(d.notReady)), ms(last(d.endpoints)),
			ms(last(d.visits)), ms(last(d.readyAgain)), ms(last(d.endpointsAgain)), load())
	}
	d.rows(name)
}

func last(all []time.Duration) time.Duration { return all[len(all)-1] }

// nodeGoes cuts one machine off, and lets it come back.
func (c *Cluster) nodeGoes(t *testing.T, victim *harness.Server, d *deaths) {
	t.Helper()
	other := slices.DeleteFunc(slices.Clone(c.Nodes()), func(s *harness.Server) bool { return s == victim })[0]
	api := c.Ask(Without(c.Servers, victim)[0])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	visitor := NewAsker("visits", visit(other.Machine, c.service()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		visitor.Run(ctx)
	}()
	harness.Eventually(t, soon, "visits have answers", func() error {
		if visitor.Steady() < 10 {
			return fmt.Errorf("%d had", visitor.Steady())
		}
		return nil
	})
	began := time.Now()
	c.Site.CutOff(victim.Machine)
	d.follow(t, api, victim.NodeName(), began, false)
	harness.Eventually(t, soon, "visits have answers again", func() error {
		if visitor.Steady() < 30 {
			return fmt.Errorf("the last %d had", visitor.Steady())
		}
		return nil
	})
	cancel()
	<-done
	failed, _, _ := visitor.Failed()
	var after time.Duration
	for _, f := range failed {
		after = max(after, f.At.Sub(began))
	}
	d.visits = append(d.visits, after)
	c.Site.Heal()
	d.follow(t, api, victim.NodeName(), time.Now(), true)
}

// follow notes when a node and its endpoint are ready, or are not.
func (d *deaths) follow(t *testing.T, api kubernetes.Interface, node string, began time.Time, ready bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var nodeAt, endpointsAt time.Duration
	for nodeAt == 0 || endpointsAt == 0 {
		n, err := api.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err == nil && nodeAt == 0 && ready == (Ready(n) == corev1.ConditionTrue) {
			nodeAt = time.Since(began)
		}
		slices, err2 := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=everywhere"})
		if err2 == nil && endpointsAt == 0 && ready == servesOn(slices.Items, node) {
			endpointsAt = time.Since(began)
		}
		if ctx.Err() != nil {
			t.Fatalf("ready is to be %v: node after %v, endpoints after %v: %v", ready, nodeAt, endpointsAt, errors.Join(err, err2))
		}
		pauseFor(ctx, retryAfter) // between two looks
	}
	if ready {
		d.readyAgain, d.endpointsAgain = append(d.readyAgain, nodeAt), append(d.endpointsAgain, endpointsAt)
	} else {
		d.notReady, d.endpoints = append(d.notReady, nodeAt), append(d.endpoints, endpointsAt)
	}
}

// servesOn says whether a ready endpoint is on a node.
func servesOn(slices []discoveryv1.EndpointSlice, node string) bool {
	for _, s := range slices {
		for _, e := range s.Endpoints {
			if e.NodeName != nil && *e.NodeName == node && e.Conditions.Ready != nil && *e.Conditions.Ready {
				return true
			}
		}
	}
	return false
}
