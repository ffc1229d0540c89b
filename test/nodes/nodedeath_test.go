//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

var spreadService = harness.Workload("Deployment", "d", "replicas: 2", `
  `+harness.OnePerNode("d")+`, containers: [`+harness.BoxYAML+`, command: [sh, -c, "testbox tcp 9 & exec testbox serve"]}]`) + `
apiVersion: v1
kind: Service
metadata: {name: d}
spec: {selector: {app: d}, ports: [{port: 80, targetPort: 8080}]}
`

// isReady fails unless a node's condition Ready has that status.
func isReady(s, node *harness.Server, want string) error {
	return harness.Exactly(want)(s.TryKubectl("get", "node", node.NodeName(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`))
}

// endpoints fails unless so many endpoints of the Service d are ready.
func endpoints(s *harness.Server, want int) error {
	out, err := s.TryKubectl("get", "endpointslices", "-l", "kubernetes.io/service-name=d", "-o", "jsonpath={.items[*].endpoints[*].conditions.ready}")
	if got := strings.Count(out, "true"); err == nil && got != want {
		err = fmt.Errorf("%d endpoints are ready, want %d: %s", got, want, out)
	}
	return err
}

// eventually waits for a condition, which may come after a back-off, and logs how long that took since a moment.
func eventually(t *testing.T, since time.Time, what string, f func() error) {
	t.Helper()
	harness.Eventually(t, harness.Longer, what, f)
	t.Logf("%s: after %v", what, time.Since(since).Round(10*time.Millisecond))
}

// spread makes a server without a node and two agents, and a Service that has an endpoint on each of these.
func spread(t *testing.T) (site *harness.Site, s *harness.Server, agents []*harness.Server) {
	t.Helper()
	site = harness.NewSite(t)
	s, agents = spreadOn(t, site)
	return site, s, agents
}

// spreadOn is spread on a site that there is. args are those of the agents.
func spreadOn(t *testing.T, site *harness.Site, args ...string) (s *harness.Server, agents []*harness.Server) {
	t.Helper()
	s = site.NewMachine().NewServer("--disable-agent")
	agents = withAgents(t, s, 2, args...)
	s.Apply(spreadService)
	harness.Eventually(t, harness.Soon, "the Service has two endpoints", func() error { return endpoints(s, 2) })
	return s, agents
}

// withAgents starts a server and so many agents that can run testbox, and waits until these are ready.
func withAgents(t *testing.T, s *harness.Server, count int, args ...string) (agents []*harness.Server) {
	t.Helper()
	s.StartAPI()
	for range count {
		a := s.Machine.Site.NewMachine().NewAgent(s, args...)
		a.AddBoxImage()
		a.Start()
		agents = append(agents, a)
	}
	for _, a := range agents {
		harness.Eventually(t, harness.Soon, "the nodes are ready", func() error { return s.NodeReady(a) })
	}
	return agents
}

// TestVanishedNodeBecomesUnready: a node whose machine vanishes is not Ready, and no Service sends to it; its return
// undoes it. What an agent that gets no CPU is asked for about volumes happens when it goes on.
func TestVanishedNodeBecomesUnready(t *testing.T) {
	site, s, agents := spread(t)

	if got := s.Kubectl("get", "pods", "-l", "app=d", "-o", "jsonpath={.items[0].spec.tolerations[*].tolerationSeconds}"); got != "60 60" {
		t.Errorf("pods stay on a lost node for %q seconds", got)
	}

	victim := agents[1]
	vanished := time.Now()
	site.Split(victim.Machine, s.Machine)
	site.Split(victim.Machine, agents[0].Machine)
	eventually(t, vanished, "the node is not Ready", func() error { return isReady(s, victim, "Unknown") })
	eventually(t, vanished, "the Service does not use it", func() error { return endpoints(s, 1) })
	// Kubernetes' own controller would have noticed in the end, too, and on a busy machine may have done so first.
	harness.Eventually(t, harness.Soon, "the server finds that the node is dead", func() error { return s.LogSays("a node is dead") })
	// Whether it was taken for dead in between as well is a matter of real time: TestSilentAgentIsNotDead.
	harness.Eventually(t, harness.Soon, "the other node is Ready", func() error { return isReady(s, agents[0], "True") })

	back := time.Now()
	site.Heal()
	eventually(t, back, "the node is Ready again", func() error { return isReady(s, victim, "True") })
	eventually(t, back, "the Service uses it again", func() error { return endpoints(s, 2) })

	topSeesBoth(t, s, agents)
	volumes := volumesBefore(t, s, victim)
	paused := time.Now()
	victim.Pause()
	volumes.ask()
	topWithoutStalled(t, s, victim, agents[0])
	volumes.unanswered(paused)
	woken := time.Now()
	victim.Resume()
	harness.Eventually(t, harness.Soon, "the agent goes on", func() error {
		_, err := s.TryKubectl("get", "--raw", "/api/v1/nodes/"+victim.NodeName()+"/proxy/healthz")
		return err
	})
	volumes.answered(woken)
	// On a busy machine the agent was silent for so long that its node counted as dead.
	eventually(t, woken, "the node is Ready", func() error { return s.NodeReady(victim) })
	eventually(t, woken, "the Service has two endpoints", func() error { return endpoints(s, 2) })
}

// TestSilentAgentIsNotDead: while a machine answers, its node stays as it is when its agent gets no CPU or is killed,
// since its pods run; and so does a node whose neighbour vanishes. Without the question whether the machine answers,
// both would be dead after two seconds.
func TestSilentAgentIsNotDead(t *testing.T) {
	harness.ByHand(t) // a server that gets no processor time for a second, in which the machine's answer waits, takes the node for dead
	site, s, agents := spread(t)
	victim := agents[1]
	stays := func(what string, node *harness.Server, endpointsReady int) {
		t.Helper()
		const patience = 40 * time.Second // of the servers with a silent node whose machine answers: what is seen later shows nothing
		// A window in which nothing may happen has no event that ends it.
		for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(500 * time.Millisecond) { // between two looks
			if err := errors.Join(isReady(s, node, "True"), endpoints(s, endpointsReady)); err != nil && time.Since(began) < patience {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	victim.Pause()
	stays("an agent that gets no CPU", victim, 2)
	victim.Resume()
	harness.Eventually(t, harness.Soon, "the node is Ready", func() error { return s.NodeReady(victim) })
	harness.Eventually(t, harness.Soon, "the Service has two endpoints", func() error { return endpoints(s, 2) })
	victim.Kill()
	stays("an agent that crashed", victim, 2)
	victim.Start()
	harness.Eventually(t, harness.Soon, "the node is Ready again", func() error { return s.NodeReady(victim) })

	site.Split(victim.Machine, s.Machine)
	site.Split(victim.Machine, agents[0].Machine)
	harness.Eventually(t, harness.Soon, "the Service does not use the node that vanished", func() error { return endpoints(s, 1) })
	stays("the neighbour of a node that vanished", agents[0], 1)
}

// TestLeadersNodeDies: the machine of the server that leads vanishes, which is a node too; the server that leads then
// marks it.
func TestLeadersNodeDies(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer()
	first.StartAPI()
	servers := []*harness.Server{first}
	for range 2 {
		s := site.NewMachine().NewPeer(first, "--disable-agent")
		s.StartAPI()
		servers = append(servers, s)
	}
	second := servers[1]
	harness.Eventually(t, harness.Soon, "all three vote, and the first leads", func() error {
		out, err := second.Run(second.Coracle(), "store", "status", "--data-dir", second.DataDir)
		if err == nil && strings.Count(out, " voter ") < 2 {
			err = fmt.Errorf("not three voters yet:\n%s", out)
		}
		return err
	})
	harness.Eventually(t, harness.Soon, "the node is ready", func() error { return isReady(second, first, "True") })
	for _, s := range servers[1:] {
		harness.Eventually(t, harness.Soon, "the node is connected to the other servers", func() error { return s.LogSays("a node is connected") })
	}
	vanished := time.Now()
	for _, s := range servers[1:] {
		site.Split(first.Machine, s.Machine)
	}
	eventually(t, vanished, "the dead leader's node is not Ready", func() error { return isReady(second, first, "Unknown") })
	harness.Eventually(t, harness.Soon, "a server finds that the node is dead, and not Kubernetes' own controller alone", func() error {
		if servers[1].LogSays("a node is dead") == nil {
			return nil
		}
		return servers[2].LogSays("a node is dead")
	})
	back := time.Now()
	site.Heal()
	eventually(t, back, "the node is Ready again", func() error { return isReady(second, first, "True") })
}
