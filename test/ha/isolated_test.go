//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// isolate cuts a server off from all other servers, and from no agent.
func (c *Cluster) isolate(s *harness.Server) {
	for _, o := range Without(c.Servers, s) {
		c.Site.Split(s.Machine, o.Machine)
	}
}

// writesThrough waits until a write through an agent's balancer is acknowledged, and returns how long that took. Each
// try has a connection of its own.
func (c *Cluster) writesThrough(t *testing.T, a *harness.Server, name string) time.Duration {
	t.Helper()
	began := time.Now()
	harness.Eventually(t, soon, fmt.Sprintf("a write through agent %d", a.Number), func() error {
		_, err := c.Client(a.Machine, balanced, 2*time.Second).CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(t.Context(),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return unlessThere(err)
	})
	return time.Since(began)
}

// agentPatience is within which time an agent has an API again, while any server that it reaches has one.
const agentPatience = 10 * time.Second

// TestIsolatedServerIsLeft: the server that an agent uses reaches no other server, but all agents. The agent turns to
// another one, and stays there when the first one is back. Status on the first one names the others and advises no
// recovery, and the command refuses.
func TestIsolatedServerIsLeft(t *testing.T) {
	c := New(t, 3, 1)
	agent := c.Agents[0]
	for _, leads := range []bool{false, true} {
		if leads && !whole {
			break
		}
		used := c.usedBy(t, agent)
		lead := Without(c.Servers, used)[0]
		if leads {
			lead = used
		}
		c.Lead(lead)
		c.isolate(used)
		took := c.writesThrough(t, agent, fmt.Sprintf("isolated-%v", leads))
		t.Logf("machine %d, which led: %v, reached no other server: a write through the agent is acknowledged after %v", used.Number, leads, took.Round(100*time.Millisecond))
		testenv.True(t, !whole || took <= agentPatience, "the agent has an API after %v, want %v at most", took, agentPatience)
		testenv.True(t, c.usedBy(t, agent) != used, "the agent uses the server that reaches no other")
		said := says(t, used, "Do not recover this server", "status")
		testenv.False(t, strings.Contains(said, "coracle store recover"), "status advises to recover:\n%s", said)
		says(t, agent, "Nothing is wrong", "status")
		if !leads {
			testenv.Check(t, used.Stop(), "a server that reaches no other cannot be stopped")
			said, err := used.Run(used.Coracle(), "store", "recover", "--yes", "--data-dir", used.DataDir)
			testenv.True(t, err != nil && strings.Contains(said, "YES"), "%v, and:\n%s", err, said)
			t.Logf("store recover while the others work: %v\n%s", err, said)
			used.Start()
		}
		c.Site.Heal()
		c.WaitWhole()
		testenv.True(t, c.usedBy(t, agent) != used, "the agent went back to the server that it had left")
	}
}

// processorTime is what a process has used since its start.
func processorTime(t *testing.T, s *harness.Server) time.Duration {
	t.Helper()
	stat := string(testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid())))(t))
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	user := testenv.Must(strconv.Atoi(fields[11]))(t)
	kernel := testenv.Must(strconv.Atoi(fields[12]))(t)
	const tick = 10 * time.Millisecond // USER_HZ
	return time.Duration(user+kernel) * tick
}

// TestServerWithoutLeaderIsIdle: a server that has no leader for a minute, since it reaches no other server or since
// the others are dead, uses little processor time.
func TestServerWithoutLeaderIsIdle(t *testing.T) {
	harness.SkipUnlessWhole(t, "it measures processor time for minutes")
	const most = 5 // percent of a core; 3 at most are wanted, and a load of 12 on two cores has been seen to add a half
	for name, fault := range map[string]func(c *Cluster, left *harness.Server){
		"isolated": (*Cluster).isolate,
		"others killed": func(c *Cluster, left *harness.Server) {
			for _, o := range Without(c.Servers, left) {
				o.Kill()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(t, 3, 0)
			left := Without(c.Servers, c.MustLeader())[0]
			time.Sleep(20 * time.Second) // what a start leaves to be done
			used := func(during time.Duration) float64 {
				before := processorTime(t, left)
				time.Sleep(during) // what is measured
				return 100 * float64(processorTime(t, left)-before) / float64(during)
			}
			rest := used(10 * time.Second)
			fault(c, left)
			var shares []string
			sum := 0.0
			const rounds = 12
			for range rounds {
				share := used(5 * time.Second)
				shares, sum = append(shares, fmt.Sprintf("%.1f", share)), sum+share
			}
			t.Logf("at rest %.1f%% of a core; without a leader, in steps of 5 s: %s%%", rest, strings.Join(shares, ", "))
			testenv.True(t, sum/rounds <= most, "without a leader a server uses %.1f%% of a core, at most %d%%", sum/rounds, most)
		})
	}
}

// TestLeaderThatCannotBeCalled: connections that are there stay, and no new one is made between the leader and the
// other servers. No client uses the followers for so long that their connections for calls end. Then all write again.
func TestLeaderThatCannotBeCalled(t *testing.T) {
	harness.SkipUnlessWhole(t, "connections for calls end after a minute without calls")
	c := New(t, 3, 0)
	leader := c.MustLeader()
	for _, o := range Without(c.Servers, leader) {
		c.Site.NoConnecting(leader.Machine, o.Machine)
		c.Site.NoConnecting(o.Machine, leader.Machine)
	}
	time.Sleep(100 * time.Second) // connections for calls close after a minute without calls
	began := time.Now()
	for _, s := range Without(c.Servers, leader) {
		harness.Eventually(t, soon, fmt.Sprintf("a write at machine %d", s.Number), func() error {
			return c.writeAt(t.Context(), s, fmt.Sprintf("called-%d", s.Number))
		})
		took := time.Since(began)
		t.Logf("machine %d has a write acknowledged after %v", s.Number, took.Round(10*time.Millisecond))
		testenv.True(t, took <= agentPatience, "machine %d has a write acknowledged after %v, want %v at most", s.Number, took, agentPatience)
	}
	c.Site.Heal()
	c.WaitWhole()
}

// writeAt makes a ConfigMap at a server, over a connection of its own.
func (c *Cluster) writeAt(ctx context.Context, s *harness.Server, name string) error {
	_, err := c.Client(s.Machine, own, 2*time.Second).CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		return errors.Join(unlessThere(err), s.Alive())
	}
	return nil
}
