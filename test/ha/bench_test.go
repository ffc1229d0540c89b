//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
)

// times is how often each failover is measured.
func times() int {
	if n, err := strconv.Atoi(os.Getenv("CORACLE_HA_TIMES")); err == nil {
		return n
	}
	return 20
}

// row prints one line of the table: p50, the worst, and all of them.
func row(name string, took []time.Duration) {
	if len(took) == 0 {
		return
	}
	sorted := sortedDurations(took)
	fmt.Printf("| %s | %d | %.0f | %.0f |\n", name, len(took), ms(sorted[len(sorted)/2]), ms(sorted[len(sorted)-1]))
}

func sortedDurations(in []time.Duration) []time.Duration { return slices.Sorted(slices.Values(in)) }

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return string(b[:14])
}

// TestFailover measures how long a cluster of three servers is without writes through the API when its leader goes.
func TestFailover(t *testing.T) {
	c := New(t, 3, 1)
	ns := "bench"
	if _, err := c.Ask(c.Servers[0]).CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n| leader's end | times | p50 ms | most ms |\n| --- | --- | --- | --- |\n")
	defer func() { fmt.Printf("load at the end: %s\n", load()) }()
	var ends []time.Duration // the kernel takes its time to end a process
	kill := func(s *harness.Server) (undo func()) {
		began := time.Now()
		gone := make(chan time.Duration, 1) // one: nobody may wait yet
		go func() {
			s.Kill()
			gone <- time.Since(began)
		}()
		return func() {
			ends = append(ends, <-gone)
			s.Start()
		}
	}
	vanish := func(s *harness.Server) (undo func()) {
		c.Site.CutOff(s.Machine)
		return c.Site.Heal
	}
	c.failovers(t, ns, "its process is killed", kill)
	row("of that: until the kernel has ended the process", ends)
	c.failovers(t, ns, "its machine vanishes", vanish)
	stop := burn(t, 4)
	c.failovers(t, ns, "its machine vanishes, beside 4 busy processes", vanish)
	stop()
}

// TestStalledDiskFailover measures the same when the disk of the server that leads stalls.
func TestStalledDiskFailover(t *testing.T) {
	c := NewPrepared(t, 3, 1, (*harness.Server).AddDisk)
	ns := "bench"
	if _, err := c.Ask(c.Servers[0]).CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n| leader's end | times | p50 ms | most ms |\n| --- | --- | --- | --- |\n")
	c.failovers(t, ns, "its disk stalls", func(s *harness.Server) (undo func()) { return s.StallDisk() })
	fmt.Printf("load at the end: %s\n", load())
}

func (c *Cluster) failovers(t *testing.T, ns, name string, fault func(*harness.Server) func()) {
	t.Helper()
	var atServer, atAgent, loops []time.Duration
	for i := range times() {
		leader := c.MustLeader()
		other := Without(c.Servers, leader)[i%2]
		var running sync.WaitGroup
		direct, through := c.Client(other.Machine, own, writeTimeout), c.Client(c.Agents[0].Machine, balanced, writeTimeout)
		prefix := fmt.Sprintf("x-%d", time.Now().UnixNano())
		for _, api := range []kubernetes.Interface{direct, through} { // connections that are in use
			if _, err := FirstWrite(t.Context(), api, ns, prefix+"-warm"); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		undo := fault(leader)
		running.Go(func() {
			at, err := FirstWrite(t.Context(), direct, ns, prefix+"-direct")
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			atServer = append(atServer, at.Sub(began))
		})
		running.Go(func() {
			at, err := FirstWrite(t.Context(), through, ns, prefix+"-through")
			if err != nil {
				t.Errorf("%s, through the agent: %v", name, err)
			}
			atAgent = append(atAgent, at.Sub(began))
		})
		running.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		deployment := fmt.Sprintf("d-%d", time.Now().UnixNano())
		if err := Bound(ctx, direct, deployment); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		loops = append(loops, time.Since(began))
		cancel()
		if err := direct.AppsV1().Deployments("default").Delete(t.Context(), deployment, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if atServer[i] > explainAbove() {
			c.explain(func(format string, args ...any) { fmt.Printf("    "+format+"\n", args...) }, Without(c.Servers, leader), began)
		}
		undo()
		c.WaitWhole()
		fmt.Printf("  %s: %.0f ms, through the agent %.0f ms, bound %.0f ms, load %s\n", name, ms(atServer[i]), ms(atAgent[i]), ms(loops[i]), load())
	}
	row(name+": a write through another server's API", atServer)
	row(name+": a write through an agent's balancer", atAgent)
	row(name+": a new Deployment's pods are bound", loops)
}
