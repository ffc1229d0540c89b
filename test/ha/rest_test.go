//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// seconds is a window of a measurement, from the environment or as given.
func seconds(name string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(os.Getenv(name)); err == nil {
		return d
	}
	return otherwise
}

// usage is what a process has used so far.
type usage struct {
	cpu     time.Duration
	written int64
	wire    int64 // bytes that its machine has sent and received
}

func used(t *testing.T, s *harness.Server) usage {
	t.Helper()
	stat := testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid())))(t)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.ParseInt(fields[11], 10, 64) // the kernel wrote them
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	u := usage{cpu: time.Duration(user+system) * 10 * time.Millisecond, written: proc.Written(s.Pid())}
	for _, way := range []string{"rx_bytes", "tx_bytes"} {
		out := testenv.Must(s.Run("cat", "/sys/class/net/eth0/statistics/"+way))(t)
		n, _ := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		u.wire += n
	}
	return u
}

// TestRest measures what the machines of three servers and two agents use when nothing happens, and how long joining
// takes.
func TestRest(t *testing.T) {
	c := New(t, 3, 1)
	c.joining(t)
	c.atRest(t)
}

// TestRestOfNodes measures what three servers use that run pods too.
func TestRestOfNodes(t *testing.T) {
	NewOfNodes(t, 3, 0).atRest(t)
}

// joining measures how long an agent and a fourth server take to join. The agent stays.
func (c *Cluster) joining(t *testing.T) {
	t.Helper()
	fmt.Printf("\n| joining, from the start of the process | s |\n| --- | --- |\n")
	a := c.Site.NewMachine().NewAgent(c.Servers[0])
	a.AddBoxImage()
	began := time.Now()
	a.Start()
	c.Agents = append(c.Agents, a)
	harness.Eventually(t, soon, "the agent's node is ready", func() error { return c.nodesReady(t.Context(), c.Ask(c.Servers[0])) })
	fmt.Printf("| an agent, until its node is Ready | %.1f |\n", time.Since(began).Seconds())
	m := c.Site.NewMachine()
	s := m.NewPeer(c.Servers[0], "--disable-agent")
	began = time.Now()
	s.Start()
	c.Servers = append(c.Servers, s)
	harness.Eventually(t, soon, "the server serves", func() error {
		_, err := c.Ask(s).Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		return err
	})
	fmt.Printf("| a fourth server, until its API is ready | %.1f |\n", time.Since(began).Seconds())
	if out, err := c.Servers[0].Run(c.Servers[0].Coracle(), "member", "remove", s.NodeName(), "--data-dir", c.Servers[0].DataDir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.Kill()
	c.Servers = Without(c.Servers, s)
	c.WaitWhole()
}

// atRest measures what every machine uses when nothing happens.
func (c *Cluster) atRest(t *testing.T) {
	t.Helper()
	time.Sleep(seconds("CORACLE_HA_SETTLE", 3*time.Minute)) // heaps come to rest within minutes
	window := seconds("CORACLE_HA_WINDOW", 3*time.Minute)
	leader := c.MustLeader()
	before := map[*harness.Server]usage{}
	all := append(append([]*harness.Server(nil), c.Servers...), c.Agents...)
	for _, s := range all {
		before[s] = used(t, s)
	}
	began := time.Now()
	time.Sleep(window) // the length of a measurement
	fmt.Printf("\n| at rest | RSS MB | anonymous MB | CPU %% of a core | written KB/min | wire bytes/s |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, s := range all {
		now, was, took := used(t, s), before[s], time.Since(began)
		role := "a server that does not lead"
		switch {
		case s == leader:
			role = "the server that leads"
		case s.Role == "agent":
			role = "an agent"
		}
		fmt.Printf("| %s (machine %d) | %.0f | %.0f | %.2f | %.1f | %.0f |\n", role, s.Number, proc.StatusMB(s.Pid(), "VmRSS:"), proc.StatusMB(s.Pid(), "RssAnon:"),
			100*(now.cpu-was.cpu).Seconds()/took.Seconds(), float64(now.written-was.written)/1024/took.Minutes(), float64(now.wire-was.wire)/took.Seconds())
	}
	fmt.Printf("load at the end: %s\n", load())
}

func writesHeading() {
	fmt.Printf("\n| writes through the API, 16 clients | a second | p50 ms | most ms |\n| --- | --- | --- | --- |\n")
}

// TestWrites measures how many ConfigMaps a second are created through the API by 16 clients.
func TestWrites(t *testing.T) {
	writesHeading()
	one := New(t, 1, 0)
	one.writes(t, "one server", one.Servers[0])
	testenv.Check(t, one.Servers[0].Stop())
	three := New(t, 3, 0)
	leader := three.MustLeader()
	three.writes(t, "three servers, through the one that leads", leader)
	three.writes(t, "three servers, through another one", Without(three.Servers, leader)[0])
	fmt.Printf("load at the end: %s\n", load())
}

func (c *Cluster) writes(t *testing.T, name string, s *harness.Server) {
	t.Helper()
	ns := fmt.Sprintf("w-%d", time.Now().UnixNano())
	api := c.Client(s.Machine, own, writeTimeout)
	testenv.Must(
		api.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}))(t)
	ctx, cancel := context.WithTimeout(t.Context(), seconds("CORACLE_HA_RATE", 15*time.Second))
	defer cancel()
	var running sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	var number atomic.Int64
	began := time.Now()
	for range 16 {
		running.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c-%d", number.Add(1))}, Data: map[string]string{"text": strings.Repeat("x", 500)}}
				_, err := api.CoreV1().ConfigMaps(ns).Create(ctx, object, metav1.CreateOptions{})
				if err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
				if err == nil {
					mu.Lock()
					took = append(took, time.Since(start))
					mu.Unlock()
				}
			}
		})
	}
	running.Wait()
	sorted := sortedDurations(took)
	fmt.Printf("| %s | %.0f | %.1f | %.1f |\n", name, float64(len(took))/time.Since(began).Seconds(), ms(sorted[len(sorted)/2]), ms(sorted[len(sorted)-1]))
}
