// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// TestTwentyTerms gains and loses leadership twenty times. Each term has to do work before it ends, and leave no
// goroutine and no heap behind.
func TestTwentyTerms(t *testing.T) {
	c := shared
	const rounds, pods = 20, 4
	ctx := t.Context()

	// What the first term leaves for good (registered metrics, lazily built tables) is not a leak.
	ns := c.warmUp(t, pods)
	goroutines, heap := settled(t, 0), liveHeap()
	t.Logf("baseline: %d goroutines, %.1f MB live", goroutines, mb(heap))

	for i := range rounds {
		begin := time.Now()
		stop := c.lead(ctx, uint64(i+2))
		c.turn(t, ns, pods, i)
		running, worked := runtime.NumGoroutine(), time.Since(begin)
		begin = time.Now()
		if err := stop(); err != nil {
			t.Fatalf("term %d: %v", i+2, err)
		}
		stopped := time.Since(begin)
		t.Logf("term %2d: worked after %4d ms, %d goroutines, stopped in %3d ms, %d left, %.1f MB live",
			i+2, worked.Milliseconds(), running, stopped.Milliseconds(), settled(t, goroutines), mb(liveHeap()))
	}
	if os.Getenv("PROFILE") != "" {
		f, _ := os.Create(os.Getenv("PROFILE"))
		pprof.WriteHeapProfile(f)
		f.Close()
	}
}

func mb(n uint64) float64 { return float64(n) / (1 << 20) }

// warmUp makes a node and a Deployment, and leads for one term.
func (c *cluster) warmUp(t *testing.T, pods int) string {
	t.Helper()
	stop := c.lead(t.Context(), 1)
	ns := c.namespace(t, "terms")
	c.node(t, "terms-node")
	_, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: ptr.To(int32(pods)), Selector: selector("web"), Template: podTemplate("web")},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound pods", func(ctx context.Context) error { return c.bound(ctx, ns, "web", pods) })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	return ns
}

// turn scales the Deployment to nothing and back, which takes the ReplicaSet and Deployment controllers and the scheduler.
func (c *cluster) turn(t *testing.T, ns string, pods, round int) {
	t.Helper()
	for _, n := range []int{0, pods} {
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, n)
		_, err := c.client.AppsV1().Deployments(ns).Patch(t.Context(), "web", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("round %d: %d bound pods", round, n), func(ctx context.Context) error {
			// A pod on a node without a kubelet stays until it is deleted by force.
			if n == 0 {
				_ = c.client.CoreV1().Pods(ns).DeleteCollection(ctx, *metav1.NewDeleteOptions(0), metav1.ListOptions{LabelSelector: "app=web"})
			}
			return c.bound(ctx, ns, "web", n)
		})
	}
}

// settled waits until the process has no more goroutines than want, as the API server's side of ended watches takes a
// moment, and returns how many it has.
func settled(t *testing.T, want int) int {
	t.Helper()
	least, since := runtime.NumGoroutine(), time.Now()
	for time.Since(since) < 2*time.Second {
		runtime.Gosched()
		time.Sleep(5 * time.Millisecond) // polling
		if n := runtime.NumGoroutine(); n < least {
			least, since = n, time.Now()
		}
		if least <= want {
			break
		}
	}
	return least
}

func liveHeap() uint64 {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
