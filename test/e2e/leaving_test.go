//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestLeaving: a node is drained and comes back; one leaves and its pods move; a server is removed by name, another one leaves while it leads and alone
// has a vote, and the last one has nothing to leave.
func TestLeaving(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.Start()
	first.WaitAPI()
	second := site.NewMachine().NewPeer(first)
	third := site.NewMachine().NewPeer(first)
	agent := site.NewMachine().NewAgent(first)
	for _, m := range []*harness.Server{second, third, agent} {
		m.AddBoxImage()
		m.Start()
	}
	for _, m := range []*harness.Server{second, third, agent} {
		harness.Eventually(t, soon, "the node is ready", func() error { return first.NodeReady(m) })
	}
	harness.Eventually(t, soon, "there are three servers", func() error { return serversAre(first, 3) })
	drains(t, first, third)
	first.InsistsOn(spreadDeployment)
	first.Insists("scale", "deployment/d", "--replicas=3")
	first.Kubectl("rollout", "status", "deployment/d", "--timeout=300s")
	if on := nodesOf(first); !strings.Contains(on, agent.NodeName()) {
		t.Fatalf("no pod runs on the agent, but on %s", on)
	}

	out, err := agent.Run(agent.Coracle(), "leave", "--data-dir", agent.DataDir)
	if err != nil {
		t.Fatalf("%v: %s; the agent: %v\n%s", err, out, agent.Alive(), agent.LogTail(60))
	}
	harness.Says(t, out, "no node of the cluster any more")
	gone := func(m *harness.Server) error {
		out, err := second.TryKubectl("get", "nodes", "-o", "name")
		if err == nil && strings.Contains(out, m.NodeName()) {
			err = fmt.Errorf("%s is there: %s", m.NodeName(), out)
		}
		return err
	}
	harness.Eventually(t, soon, "the node is gone", func() error { return gone(agent) })
	harness.Eventually(t, soon, "all pods run, and none on the node that left", func() error {
		if on := nodesOf(second); len(strings.Fields(on)) != 3 || strings.Contains(on, agent.NodeName()) {
			return fmt.Errorf("they run on %q", on)
		}
		return nil
	})
	if err := agent.Stop(); err != nil {
		t.Error(err)
	}

	out, err = first.Run(first.Coracle(), "node", "remove", third.NodeName(), "--data-dir", first.DataDir)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	harness.Says(t, out, "no node of the cluster any more")
	harness.Eventually(t, soon, "the server's node is gone", func() error { return gone(third) })
	harness.Eventually(t, soon, "two servers are left", func() error { return serversAre(first, 2) })
	if err := third.Stop(); err != nil {
		t.Error(err)
	}

	// The first one has no node, and of the two the only vote.
	out, err = first.Run(first.Coracle(), "leave", "--data-dir", first.DataDir)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	harness.Says(t, out, "no server of the cluster any more")
	harness.Eventually(t, soon, "one server is left", func() error { return serversAre(second, 1) })
	if err := first.Stop(); err != nil {
		t.Error(err)
	}
	second.Creates("configmap", "after") // it has to win an election first
	second.Kubectl("rollout", "status", "deployment/d", "--timeout=300s")
	out, err = second.Run(second.Coracle(), "leave", "--data-dir", second.DataDir)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	harness.Says(t, out, "only server")
}

// drains: coracle node drain moves a node's pods elsewhere, also those with an emptyDir, leaves the ones of DaemonSets, and keeps new ones away until kubectl uncordon.
func drains(t *testing.T, s, m *harness.Server) {
	t.Helper()
	const container = `terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "` + harness.BoxImage + `", imagePullPolicy: Never, command: [sleep, "3600"], volumeMounts: [{name: scratch, mountPath: /scratch}]}]
      volumes: [{name: scratch, emptyDir: {}}]`
	s.InsistsOn(fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: moves}
spec:
  selector: {matchLabels: {app: moves}}
  template:
    metadata: {labels: {app: moves}}
    spec:
      affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}}]}}
      %s
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: stays}
spec:
  selector: {matchLabels: {app: stays}}
  template:
    metadata: {labels: {app: stays}}
    spec:
      %s
`, m.NodeName(), container, container))
	s.Kubectl("rollout", "status", "deployment/moves", "--timeout=300s")
	s.Kubectl("rollout", "status", "daemonset/stays", "--timeout=300s")
	on := func(app string) string {
		return s.Insists("get", "pods", "-l", "app="+app, "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.nodeName}")
	}
	if got := on("moves"); got != m.NodeName() {
		t.Fatalf("the pod runs on %s", got)
	}
	out, err := s.Run("env", "KUBECONFIG="+s.Kubeconfig, s.Coracle(), "node", "drain", m.NodeName(), "--timeout=3m", "--data-dir", s.DataDir)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	harness.Says(t, out, m.NodeName()+" drained")
	// The Deployment's status may be of before.
	harness.Eventually(t, soon, "the pod of the node that was drained runs elsewhere", func() error {
		if got := on("moves"); got == m.NodeName() || got == "" {
			return fmt.Errorf("it runs on %q", got)
		}
		return nil
	})
	if got := on("stays"); !strings.Contains(got, m.NodeName()) {
		t.Errorf("the DaemonSet's pod is gone from the node; there is one on %s", got)
	}
	if got := s.Kubectl("get", "node", m.NodeName(), "-o", "jsonpath={.spec.unschedulable}"); got != "true" {
		t.Errorf("new pods come to the node: unschedulable is %q", got)
	}
	s.Insists("uncordon", m.NodeName())
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
