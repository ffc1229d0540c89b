//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
)

// clients are all that use a cluster during a scenario.
type clients struct {
	c        *Cluster
	ns       string
	writers  map[*harness.Server]*Writer  // each at its own server
	watchers map[*harness.Server]*Watcher // each at its own server, or through its agent's balancer
	askers   map[*harness.Server]*Asker   // each through its agent's balancer
	visitors map[*harness.Server]*Asker   // each to the Service, from its node's machine
	former   []*Writer                    // at servers that have left the cluster
	end      map[*harness.Server]func()   // ends the writer and the watch at a server
	run      func(f func(ctx context.Context)) (end func())
	stop     func()
}

// startClients has clients use the cluster until stop is called. service is the address of a Service that answers HTTP;
// "" is none.
func startClients(t *testing.T, c *Cluster, ns, service string) *clients {
	t.Helper()
	api := c.Ask(c.Servers[0])
	harness.Eventually(t, soon, "the clients' namespace", func() error {
		_, err := api.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		return unlessThere(err)
	})
	var list *corev1.ConfigMapList
	harness.Eventually(t, soon, "what is in it at first", func() (err error) {
		list, err = api.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
		return err
	})
	x := &clients{c: c, ns: ns, writers: map[*harness.Server]*Writer{}, watchers: map[*harness.Server]*Watcher{},
		askers: map[*harness.Server]*Asker{}, visitors: map[*harness.Server]*Asker{}, end: map[*harness.Server]func(){}}
	x.runUntilStopped(t)
	for _, s := range c.Servers {
		x.begin(s, list)
	}
	for _, a := range c.Agents {
		x.watchers[a] = NewWatcher(fmt.Sprintf("the watch through agent %d", a.Number), c.Client(a.Machine, balanced, 0), ns, list)
		x.run(x.watchers[a].Run)
		client := c.Client(a.Machine, balanced, 0) // the asker bounds it
		x.askers[a] = NewAsker(fmt.Sprintf("requests through agent %d", a.Number), func(ctx context.Context) error {
			_, err := client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
			return err
		})
		x.run(x.askers[a].Run)
	}
	for _, n := range c.Nodes() {
		if service == "" {
			break
		}
		goes := visit(n.Machine, service)
		harness.Eventually(t, soon, fmt.Sprintf("a first visit from node %d", n.Number), func() error { return goes(t.Context()) })
		x.visitors[n] = NewAsker(fmt.Sprintf("visits from node %d", n.Number), goes)
		x.run(x.visitors[n].Run)
	}
	return x
}

// runUntilStopped makes run and stop.
func (x *clients) runUntilStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	x.run = func(f func(ctx context.Context)) (end func()) {
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		running.Go(func() {
			defer close(ended)
			f(ctx)
		})
		return func() {
			cancel()
			<-ended
		}
	}
	x.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(x.stop)
}

// begin has a writer and a watch at a server. The watch goes on where a list ends.
func (x *clients) begin(s *harness.Server, list *corev1.ConfigMapList) {
	x.writers[s] = NewWriter(fmt.Sprintf("at-%d", s.Number), x.c.Client(s.Machine, own, writeTimeout), x.ns)
	x.watchers[s] = NewWatcher(fmt.Sprintf("the watch at server %d", s.Number), x.c.Client(s.Machine, own, 0), x.ns, list)
	writes, watches := x.run(x.writers[s].Run), x.run(x.watchers[s].Run)
	x.end[s] = func() {
		writes()
		watches()
	}
}

// join is begin at a server that has joined the cluster since.
func (x *clients) join(t *testing.T, s *harness.Server) {
	t.Helper()
	var list *corev1.ConfigMapList
	harness.Eventually(t, soon, fmt.Sprintf("what server %d has when clients begin there", s.Number), func() (err error) {
		list, err = x.c.Ask(s).CoreV1().ConfigMaps(x.ns).List(t.Context(), metav1.ListOptions{})
		return err
	})
	x.begin(s, list)
}

// leave ends the writer and the watch at a server that has left the cluster, if there are any. What was acknowledged
// there counts.
func (x *clients) leave(t *testing.T, s *harness.Server) {
	t.Helper()
	w := x.writers[s]
	if w == nil {
		return
	}
	x.end[s]()
	if _, wrong, _ := x.watchers[s].Missing(nil); len(wrong) > 0 {
		t.Errorf("%s: %v", x.watchers[s].Name, wrong[:min(len(wrong), 5)])
	}
	x.former = append(x.former, w)
	delete(x.writers, s)
	delete(x.watchers, s)
	delete(x.end, s)
}

// unlessThere is an error unless it says that what was to be made is there: an earlier try made it, although it had no
// answer.
func unlessThere(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// ignoreNotFound is an error unless it says that what was to be deleted is not there.
func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// asksGoOn waits until requests through the balancer of each agent but one have answers that were begun after a moment.
// It is to be asked while the fault lasts: a balancer that stays with a server which does not answer is found out.
func (x *clients) asksGoOn(t *testing.T, after time.Time, but *harness.Server) {
	t.Helper()
	for a, asker := range x.askers {
		if a == but {
			continue
		}
		harness.Eventually(t, soon, asker.Name+" have answers", func() error {
			if n, _ := asker.Answered(after); n < 20 {
				failed, _, _ := asker.Failed()
				return fmt.Errorf("%d had; failed were %v", n, failed)
			}
			return nil
		})
	}
}

// writesGoOn waits until each writer but one has had a write acknowledged that it was given after a moment.
func (x *clients) writesGoOn(t *testing.T, after time.Time, but *harness.Server) {
	t.Helper()
	for s, w := range x.writers {
		if s == but {
			continue
		}
		harness.Eventually(t, soon, fmt.Sprintf("writes at server %d go on", s.Number), func() error { return w.GoesOn(after) })
	}
}

// longestGap is the longest time between two acknowledged writes of one writer but one, from a moment on.
func (x *clients) longestGap(from time.Time, but *harness.Server) time.Duration {
	var longest time.Duration
	for s, w := range x.writers {
		if s != but {
			longest = max(longest, w.LongestGap(from))
		}
	}
	return longest
}

// explainWrites logs which requests of the writers but one failed or took long since a moment.
func (x *clients) explainWrites(t *testing.T, since time.Time, but *harness.Server) {
	t.Helper()
	for s, w := range x.writers {
		if s == but {
			continue
		}
		for _, try := range w.Slow(since) {
			t.Logf("  the writer at server %d: %s, begun after %.0f ms, took %.0f ms: %v", s.Number, try.Name, ms(try.At.Sub(since)), ms(try.Took), try.Err)
		}
	}
}

// verify stops the clients and holds what was acknowledged against what the servers have and what the watches showed.
// excused are times in which an agent's balancer was none, its machine being the one at fault, and a visit to the
// Service may have gone to a pod there.
func (x *clients) verify(t *testing.T, excused map[*harness.Server][]window) {
	t.Helper()
	for s, w := range x.writers {
		acked, errs := w.Acked()
		t.Logf("writer at server %d: %d acknowledged, errors on the way: %v", s.Number, len(acked), errs)
		if len(acked) < 20 {
			t.Errorf("the writer at server %d had %d writes acknowledged: this shows little", s.Number, len(acked))
		}
	}
	for _, w := range x.former {
		acked, errs := w.Acked()
		t.Logf("writer %s, whose server has left: %d acknowledged, errors on the way: %v", w.Name, len(acked), errs)
	}
	names := x.names()
	for _, w := range x.watchers {
		harness.Eventually(t, soon, w.Name+" has seen everything", func() error {
			missing, wrong, resumed := w.Missing(names)
			if len(wrong) > 0 {
				t.Fatalf("%s, after it went on %d times: %v", w.Name, resumed, wrong[:min(len(wrong), 5)])
			}
			if len(missing) > 0 {
				return fmt.Errorf("it misses %d of %d: %v", len(missing), len(names), missing[:min(len(missing), 5)])
			}
			return nil
		})
		_, _, resumed := w.Missing(nil)
		t.Logf("%s: all of %d, it went on %d times", w.Name, len(names), resumed)
	}
	x.stop()
	x.allHave(t, names)
	for a, asker := range x.askers {
		failed, asked, retried := asker.Failed()
		t.Logf("%s: %d, of which %d once more, %d failed", asker.Name, asked, retried, len(failed))
		for _, f := range failed {
			if !slices.ContainsFunc(excused[a], func(w window) bool { return w.meets(f) }) {
				t.Errorf("%s: at %s one retry did not help: %v", asker.Name, f.At.Format(time.TimeOnly), f.Err)
			}
		}
	}
	for _, v := range x.visitors {
		failed, asked, retried := v.Failed()
		t.Logf("%s: %d, of which %d once more, %d failed", v.Name, asked, retried, len(failed))
		for _, f := range failed {
			if !inAny(excused, f) {
				t.Errorf("%s: at %s, when nothing was at fault, one retry did not help: %v", v.Name, f.At.Format(time.TimeOnly), f.Err)
			}
		}
	}
}

// inAny says whether a request was under way during any machine's fault.
func inAny(excused map[*harness.Server][]window, f Failure) bool {
	for _, windows := range excused {
		if slices.ContainsFunc(windows, func(w window) bool { return w.meets(f) }) {
			return true
		}
	}
	return false
}

// window is a time.
type window struct{ from, to time.Time }

// meets says whether a request was under way in that time: one that was begun a moment before a fault fails by it too.
func (w window) meets(f Failure) bool { return !f.Until.Before(w.from) && !f.At.After(w.to) }
