//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNodesAndServersLeave: a node is drained and comes back; one leaves and its pods move; a server is removed by
// name, another one leaves while it leads and alone has a vote, and the last one has nothing to leave.
func TestNodesAndServersLeave(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.StartAPI()
	second := site.NewMachine().NewPeer(first)
	third := site.NewMachine().NewPeer(first)
	agent := site.NewMachine().NewAgent(first)
	for _, m := range []*harness.Server{second, third, agent} {
		m.AddBoxImage()
		m.Start()
	}
	for _, m := range []*harness.Server{second, third, agent} {
		harness.Eventually(t, longer, "the node is ready", func() error { return first.NodeReady(m) })
	}
	harness.Eventually(t, soon, "there are three servers", func() error { return serversAre(first, 3) })
	drains(t, first)
	first.InsistsOn(spreadDeployment)
	first.Insists("scale", "deployment/d", "--replicas=3")
	rolledOut(first, "deployment/d")
	if on := nodesOf(first); !strings.Contains(on, agent.NodeName()) {
		t.Fatalf("no pod runs on the agent, but on %s", on)
	}

	nodeDeleted := func(m *harness.Server) error {
		out, err := second.TryKubectl("get", "nodes", "-o", "name")
		if err == nil && strings.Contains(out, m.NodeName()) {
			err = fmt.Errorf("%s is there: %s", m.NodeName(), out)
		}
		return err
	}
	leaves(agent, agent, func() error { return nodeDeleted(agent) }, "no node of the cluster any more", "leave")
	harness.Eventually(t, soon, "the node is gone", func() error { return nodeDeleted(agent) })
	harness.Eventually(t, soon, "all pods run, and none on the node that left", func() error {
		if on := nodesOf(second); len(strings.Fields(on)) != 3 || strings.Contains(on, agent.NodeName()) {
			return fmt.Errorf("they run on %q", on)
		}
		return nil
	})
	testenv.Check(t, agent.Stop())

	leaves(third, first, func() error { return nodeDeleted(third) }, "no node of the cluster any more", "node", "remove", third.NodeName())
	harness.Eventually(t, soon, "the server's node is gone", func() error { return nodeDeleted(third) })
	harness.Eventually(t, soon, "two servers are left", func() error { return serversAre(first, 2) })
	testenv.Check(t, third.Stop())

	// The first one has no node, and of the two the only vote.
	leaves(first, first, func() error { return serversAre(second, 1) }, "no server of the cluster any more", "leave")
	harness.Eventually(t, soon, "one server is left", func() error { return serversAre(second, 1) })
	testenv.Check(t, first.Stop())
	second.Creates("configmap", "after") // it has to win an election first
	rolledOut(second, "deployment/d")
	harness.Eventually(t, soon, "the last server has nothing to leave", func() error { // a busy one may be too late with an answer
		out, err := second.Run(second.Coracle(), "leave", "--data-dir", second.DataDir)
		testenv.Require(t, err != nil || strings.Contains(out, "only server"), "it says %s", out)
		return err
	})
}

// leaves has a command run at a server or agent that takes m out, and says so. Where servers elect another leader it
// can end with an error, and m leave all the same, as done tells: the command is run again until then, whatever it says
// of a machine that has left already.
func leaves(m, at *harness.Server, done func() error, says string, command ...string) {
	m.T.Helper()
	failed := false
	harness.Eventually(m.T, harness.Longer, fmt.Sprintf("machine %d leaves", m.Number), func() error {
		out, err := at.Run(at.Coracle(), append(command, "--data-dir", at.DataDir)...)
		if err == nil && !failed {
			harness.Says(m.T, out, says)
			return nil
		}
		failed = true
		if notYet := done(); notYet != nil {
			return fmt.Errorf("%w; it said %s; the machine that leaves is alive: %t\n%s", errors.Join(err, notYet), out, m.Alive() == nil, m.LogTail(60))
		}
		return nil
	})
}

// rolledOut waits until all pods of something are of its newest generation and available.
func rolledOut(s *harness.Server, what string) {
	s.T.Helper()
	harness.Eventually(s.T, longer, what+" is rolled out", func() error {
		_, err := s.TryKubectl("rollout", "status", what, "--timeout=60s")
		return err
	})
}

// drains: coracle node drain moves a node's pods elsewhere, also those with an emptyDir, leaves the ones of DaemonSets,
// and keeps new ones away until kubectl uncordon.
func drains(t *testing.T, s *harness.Server) {
	t.Helper()
	const pod = `terminationGracePeriodSeconds: 0,
  containers: [{name: c, image: "` + harness.BoxImage + `", imagePullPolicy: Never, command: [sleep, "3600"],
  volumeMounts: [{name: scratch, mountPath: /scratch}]}], volumes: [{name: scratch, emptyDir: {}}]`
	s.InsistsOn(harness.Workload("Deployment", "moves", "", pod) + harness.Workload("DaemonSet", "stays", "", pod))
	rolledOut(s, "deployment/moves")
	rolledOut(s, "daemonset/stays")
	on := func(app string) string {
		return s.Insists("get", "pods", "-l", "app="+app, "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.nodeName}")
	}
	node := on("moves")
	harness.Eventually(t, harness.Longer, "the node of its pod is drained", func() error { // again when an election ended it with an error
		out, err := s.Run("env", "KUBECONFIG="+s.Kubeconfig, s.Coracle(), "node", "drain", node, "--timeout=3m", "--data-dir", s.DataDir)
		if err == nil && !strings.Contains(out, node+" drained") {
			err = errors.New("it does not say so")
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	// The Deployment's status may be of before.
	harness.Eventually(t, soon, "the pod of the node that was drained runs elsewhere", func() error {
		if got := on("moves"); got == node || got == "" {
			return fmt.Errorf("it runs on %q", got)
		}
		return nil
	})
	if got := on("stays"); !slices.Contains(strings.Fields(got), node) {
		t.Errorf("the DaemonSet's pod is gone from the node; there is one on %s", got)
	}
	testenv.Equal(t, s.Insists("get", "node", node, "-o", "jsonpath={.spec.unschedulable}"), "true", "new pods come to the node: unschedulable is")
	s.Insists("uncordon", node)
	s.Insists("delete", "deployment/moves", "daemonset/stays", "--ignore-not-found")
}

// nodesOf are the nodes on which pods of the Deployment run.
func nodesOf(s *harness.Server) string {
	return s.Insists("get", "pods", "-l", "app=d", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.nodeName}")
}

// serversAre says whether the cluster has so many servers, in the eyes of one.
func serversAre(s *harness.Server, want int) error {
	out, err := s.Run(s.Coracle(), "member", "list", "--data-dir", s.DataDir)
	if n := strings.Count(out, ":6443 "); n != want {
		return fmt.Errorf("%d servers, want %d: %v\n%s", n, want, err, out)
	}
	return nil
}
