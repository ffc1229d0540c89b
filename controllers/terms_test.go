// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// stopWithin is generous: a stop takes some 50 ms on two shared cores.
	stopWithin = 2 * time.Minute
	// leakedGoroutines allows for the API server's own, such as one that serves a request just then.
	leakedGoroutines = 20
	// heapGrowth is what twenty rounds may add to the live heap. The store's history, the API server's metrics and the
	// JSON decoder's type tables grow by 2 MB; one term kept in memory is 12 MB.
	heapGrowth = 6 << 20
)

// TestTwentyTermsLeakNothing gains and loses leadership twenty times. Each term has to do work before it ends, and to
// leave no goroutine and no heap behind.
func TestTwentyTermsLeakNothing(t *testing.T) {
	c := shared
	const rounds, pods = 20, 4
	ctx := t.Context()

	// One term first: what a process makes once (metrics, lazily built tables, the signal loop) is no leak.
	ns := c.warmUp(t, pods)
	goroutines, heap := settle(t, 0), liveHeap()
	t.Logf("before: %d goroutines, %.1f MB live", goroutines, mb(heap))

	for i := range rounds {
		w := &witness{}
		begin := time.Now()
		stop := c.lead(ctx, uint64(i+2), w.part)
		c.turn(t, ns, pods, i)
		worked, running, used := time.Since(begin), runtime.NumGoroutine(), liveHeap()

		begin = time.Now()
		testenv.NoError(t, stop(), "term %d", i+2)
		stopped := time.Since(begin)
		left := settle(t, goroutines)
		live := liveHeap()
		for began := time.Now(); live > heap+heapGrowth && time.Since(began) < stopWithin; live = liveHeap() { // the API server may still be at work for the term's last requests
			time.Sleep(100 * time.Millisecond) // between two looks
		}
		w.gone(t)
		t.Logf("term %2d: worked after %3d ms with %d goroutines and %.1f MB live; stopped in %3d ms; %d and %.1f MB left",
			i+2, worked.Milliseconds(), running, mb(used), stopped.Milliseconds(), left, mb(live))
		testenv.False(t, stopped > stopWithin, "term %d took %s to stop", i+2, stopped)
		testenv.False(t, left > goroutines+leakedGoroutines, "term %d left %d goroutines, %d more than before", i+2, left, left-goroutines)
		if live > heap+heapGrowth {
			t.Errorf("term %d left %.1f MB live, %.1f more than before", i+2, mb(live), mb(live-heap))
		}
	}
}

// TestTermCanEndAtAnyTime ends terms while they are still being built, listing, or just running.
func TestTermCanEndAtAnyTime(t *testing.T) {
	for _, after := range []time.Duration{0, 1, 2, 5, 10, 15, 20, 30, 40, 60, 90, 130, 200} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		stop := shared.lead(ctx, 1)
		<-ctx.Done()
		begin := time.Now()
		testenv.Check(t, stop(), "a term that ended after %s", after*time.Millisecond)
		t.Logf("a term that ended after %3d ms stopped in %d ms", after, time.Since(begin).Milliseconds())
		if took := time.Since(begin); took > stopWithin {
			t.Errorf("a term that ended after %s took %s to stop", after*time.Millisecond, took)
		}
		cancel()
	}
}

func mb(n uint64) float64 { return float64(n) / (1 << 20) }

// warmUp makes a node and a Deployment, and leads for one term.
func (c *cluster) warmUp(t *testing.T, pods int) string {
	t.Helper()
	w := &witness{}
	stop := c.lead(t.Context(), 1, w.part)
	ns := c.namespace(t, "terms")
	c.node(t, "terms-node")
	testenv.Must(c.client.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: ptr.To(int32(pods)), Selector: selector("web"), Template: podTemplate("web")},
	}, metav1.CreateOptions{}))(t)
	eventually(t, "bound pods", func(ctx context.Context) error { return c.bound(ctx, ns, "web", pods) })
	testenv.NoError(t, stop())
	w.gone(t)
	return ns
}

// turn scales the Deployment to nothing and back, which takes the Deployment and ReplicaSet controllers and the
// scheduler.
func (c *cluster) turn(t *testing.T, ns string, pods, round int) {
	t.Helper()
	for _, n := range []int{0, pods} {
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, n)
		testenv.Must(c.client.AppsV1().Deployments(ns).Patch(t.Context(), "web", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(t)
		eventually(t, fmt.Sprintf("round %d: %d bound pods", round, n), func(ctx context.Context) error {
			if n == 0 { // a pod on a node without a kubelet stays until it is deleted by force
				_ = c.client.CoreV1().Pods(ns).DeleteCollection(ctx, *metav1.NewDeleteOptions(0), metav1.ListOptions{LabelSelector: "app=web"})
			}
			return c.bound(ctx, ns, "web", n)
		})
	}
}

// settle returns how many goroutines the process has once their number has stopped falling, or at once when it is no
// more than want: the API server's side of the term's watches ends a moment after the term. Where so many are wanted it
// has patience.
func settle(t *testing.T, want int) int {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	still := 2 * time.Second
	if want > 0 {
		still = 2 * time.Minute
	}
	least, since := runtime.NumGoroutine(), time.Now()
	for least > want && time.Since(since) < still {
		<-tick.C
		if n := runtime.NumGoroutine(); n < least {
			least, since = n, time.Now()
		}
	}
	return least
}

// liveHeap is what the collector finds reachable, in bytes. The second collection frees what sync.Pools kept.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// witness sees whether a term's informers are still in memory after it, by the objects in them.
type witness struct {
	pods []weak.Pointer[corev1.Pod]
	term weak.Pointer[term.Term]
}

// part takes note of the pods at the end of a term.
func (w *witness) part(ctx context.Context, t *term.Term) error {
	pods := t.Informers.Core().V1().Pods().Informer().GetStore()
	if !t.StartInformers(ctx) {
		return errors.New("the term ended before it began")
	}
	<-ctx.Done()
	for _, p := range pods.List() {
		w.pods = append(w.pods, weak.Make(p.(*corev1.Pod)))
	}
	w.term = weak.Make(t)
	return nil
}

// gone waits until nothing of the term is in memory: what ends a moment after it may hold something until then.
func (w *witness) gone(t *testing.T) {
	t.Helper()
	testenv.True(t, len(w.pods) != 0, "the term's informers held no pods, so nothing is known of their end")
	testenv.Eventually(t, 2*time.Minute, "the ended term is out of memory", func() error {
		runtime.GC()
		for _, p := range w.pods {
			if p := p.Value(); p != nil {
				return fmt.Errorf("pod %s of its informers is not", p.Name)
			}
		}
		if w.term.Value() != nil {
			return errors.New("the term itself is not")
		}
		return nil
	})
}
