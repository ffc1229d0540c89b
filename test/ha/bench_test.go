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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
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

// settled is how long after the cluster is whole a round begins. With none, a connection that the round before broke
// may still wait for TCP to send again.
func settled() time.Duration { return seconds("CORACLE_HA_SETTLED", 3*time.Second) }

func heading() {
	fmt.Printf("\n| leader's end (each time %v after the cluster is whole) | times | p50 ms | most ms |\n| --- | --- | --- | --- |\n", settled())
}

// subject is a cluster whose leader goes again and again, coracle's or upstream's.
type subject struct {
	*Cluster
	name  string                           // what its rows begin with
	pick  func(bound bool) *harness.Server // the server that goes next, which leads; bound: a Deployment's pods are to be bound afterwards
	wait  func()                           // until it is whole
	bound int                              // in how many rounds, the first ones, a Deployment's pods are to be bound
	ns    string                           // that is written to
}

// coracleSubject is a cluster of coracle's.
func coracleSubject(t *testing.T, c *Cluster) *subject {
	t.Helper()
	s := &subject{Cluster: c, pick: func(bool) *harness.Server { return c.MustLeader() }, wait: c.WaitWhole, bound: times()}
	s.namespace(t)
	return s
}

// namespace makes its namespace.
func (s *subject) namespace(t *testing.T) {
	t.Helper()
	s.ns = "bench"
	if _, err := s.Ask(s.Servers[0]).CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestFailover measures how long a cluster of three servers is without writes through the API when its leader goes.
func TestFailover(t *testing.T) {
	c := coracleSubject(t, New(t, 3, 1))
	heading()
	defer func() { fmt.Printf("load at the end: %s\n", load()) }()
	var ends []time.Duration // the kernel takes its time to end a process
	c.failovers(t, "its process is killed", kill(&ends))
	row("of that: until the kernel has ended the process", ends)
	c.failovers(t, "its machine vanishes", c.vanish)
}

// TestFailoverOfNodes measures the same where the servers run pods too, of which some are on the machine that goes.
func TestFailoverOfNodes(t *testing.T) {
	c := coracleSubject(t, NewOfNodes(t, 3, 0))
	heading()
	defer func() { fmt.Printf("load at the end: %s\n", load()) }()
	var ends []time.Duration
	c.failovers(t, "its process is killed, and its node's pods run on", kill(&ends))
	row("of that: until the kernel has ended the process", ends)
	c.failovers(t, "its machine vanishes with its node", c.vanish)
}

// TestBusyFailover measures the same where there is too little processor time for all.
func TestBusyFailover(t *testing.T) {
	c := coracleSubject(t, New(t, 3, 1))
	heading()
	stop := burn(t, 4)
	var ends []time.Duration
	c.failovers(t, "its process is killed, beside 4 busy processes", kill(&ends))
	row("of that: until the kernel has ended the process", ends)
	c.failovers(t, "its machine vanishes, beside 4 busy processes", c.vanish)
	stop()
	fmt.Printf("load at the end: %s\n", load())
}

// kill kills a server, and starts it again; ends gets how long it took the kernel to end it.
func kill(ends *[]time.Duration) func(*harness.Server) (undo func()) {
	return func(s *harness.Server) (undo func()) {
		began := time.Now()
		deadAfter := make(chan time.Duration, 1) // buffered: the receiver may not wait yet
		go func() {
			s.Kill()
			deadAfter <- time.Since(began)
		}()
		return func() {
			*ends = append(*ends, <-deadAfter)
			s.Start()
		}
	}
}

// vanish cuts a server's machine off.
func (c *Cluster) vanish(s *harness.Server) (undo func()) {
	c.Site.CutOff(s.Machine)
	return c.Site.Heal
}

// TestStalledDiskFailover measures the same when the disk of the server that leads stalls.
func TestStalledDiskFailover(t *testing.T) {
	c := coracleSubject(t, NewPrepared(t, 3, 1, (*harness.Server).AddDisk))
	heading()
	c.failovers(t, "its disk stalls", (*harness.Server).StallDisk)
	fmt.Printf("load at the end: %s\n", load())
}

func (s *subject) failovers(t *testing.T, name string, fault func(*harness.Server) func()) {
	t.Helper()
	name = s.name + name
	var atServer, atAgent, loops []time.Duration
	for i := range times() {
		s.pick(i < s.bound)
		time.Sleep(settled()) // for as long as the measurement is to have it
		leader := s.pick(i < s.bound)
		direct := s.Client(Without(s.Servers, leader)[i%2].Machine, own, writeTimeout)
		apis := []kubernetes.Interface{direct}
		if len(s.Agents) > 0 {
			apis = append(apis, s.Client(s.Agents[0].Machine, balanced, writeTimeout))
		}
		s.firstWrites(t, name, apis) // connections that are in use
		began := time.Now()
		undo := fault(leader)
		took := s.firstWrites(t, name, apis)
		atServer = append(atServer, took[0].Sub(began))
		said := fmt.Sprintf("%.0f ms", ms(atServer[i]))
		if len(took) > 1 {
			atAgent = append(atAgent, took[1].Sub(began))
			said += fmt.Sprintf(", through the agent %.0f ms", ms(atAgent[i]))
		}
		if i < s.bound {
			loops = append(loops, s.bind(t, name, direct).Sub(began))
			said += fmt.Sprintf(", bound %.0f ms", ms(loops[i]))
		}
		if atServer[i] > explainAbove() {
			s.explain(func(format string, args ...any) { fmt.Printf("    "+format+"\n", args...) }, Without(s.Servers, leader), began)
		}
		undo()
		back := time.Now()
		s.wait()
		fmt.Printf("  %s: %s, whole after %.1f s, load %s\n", name, said, time.Since(back).Seconds(), load())
	}
	row(name+": a write through another server's API", atServer)
	row(name+": a write through an agent's balancer", atAgent)
	row(name+": a new Deployment's pods are bound", loops)
}

// firstWrites writes through each API at once, and returns when the first write through each was acknowledged.
func (s *subject) firstWrites(t *testing.T, name string, apis []kubernetes.Interface) []time.Time {
	t.Helper()
	prefix := fmt.Sprintf("x-%d", time.Now().UnixNano())
	at := make([]time.Time, len(apis))
	var running sync.WaitGroup
	for i, api := range apis {
		running.Go(func() {
			var err error
			if at[i], err = FirstWrite(t.Context(), api, s.ns, fmt.Sprintf("%s-%d", prefix, i)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	running.Wait()
	return at
}

// bind makes a Deployment, and returns when its pods had a node. It deletes it again.
func (s *subject) bind(t *testing.T, name string, api kubernetes.Interface) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	deployment := fmt.Sprintf("d-%d", time.Now().UnixNano())
	testenv.Check(t, Bound(ctx, api, deployment), "%s", name)
	at := time.Now()
	harness.Eventually(t, soon, "the Deployment is deleted", func() error {
		err := api.AppsV1().Deployments("default").Delete(t.Context(), deployment, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) { // an earlier request was done, although it had no answer
			return nil
		}
		return err
	})
	return at
}
