//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// leaveable is a Deployment on all nodes, and a StatefulSet with a claim whose volume any node can mount.
var leaveable = harness.Workload("Deployment", "d", "replicas: 2", `
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway,
  labelSelector: {matchLabels: {app: d}}}], containers: [`+harness.BoxYAML+`, command: [testbox, serve]}]`) + `
apiVersion: v1
kind: PersistentVolume
metadata: {name: v}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: none
  hostPath: {path: /var/lib/shared-by-hand, type: DirectoryOrCreate}
---
` + harness.Workload("StatefulSet", "s", `
  serviceName: s, volumeClaimTemplates: [{metadata: {name: data},
  spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Mi}}}}]`, `
  containers: [`+harness.BoxYAML+`, command: [testbox, serve], volumeMounts: [{name: data, mountPath: /data}]}]`)

// runningOn fails unless the pods of an app that are ready, and not being deleted, are on these nodes.
func runningOn(s *harness.Server, app string, nodes ...string) error {
	_, err := nodesOf(s, app, nodes)
	return err
}

// spreadOver is runningOn for a Deployment whose pods prefer to be spread, and no more: those that are made while one
// node is not ready for a moment are all on the others, and stay there. They are made again.
func spreadOver(s *harness.Server, app string, nodes ...string) error {
	got, err := nodesOf(s, app, nodes)
	if err != nil && len(got) == len(nodes) {
		_, again := s.TryKubectl("delete", "pods", "-l", "app="+app, "--wait=false")
		err = errors.Join(err, again)
	}
	return err
}

// nodesOf are the nodes of an app's pods that are ready, and not being deleted, with an error unless they are want.
func nodesOf(s *harness.Server, app string, want []string) (got []string, err error) {
	out, err := s.TryKubectl("get", "pods", "-l", "app="+app, "-o",
		`jsonpath={range .items[*]}{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "True" {
			got = append(got, f[0])
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		err = fmt.Errorf("pods of %s run on %v, want %v:\n%s", app, got, want, out)
	}
	return got, err
}

// withLeaveable makes a server without a node and two agents with these workloads, whose pods tolerate a lost node for
// five seconds. victim is the node of the StatefulSet's pod, left the other one.
func withLeaveable(t *testing.T) (site *harness.Site, s, victim, left *harness.Server) {
	t.Helper()
	site = harness.NewSite(t)
	s = site.NewMachine().NewServer("--disable-agent", "--default-toleration-seconds", "5")
	agents := withAgents(t, s, 2)
	s.InsistsOn(leaveable)
	names := []string{agents[0].NodeName(), agents[1].NodeName()}
	harness.Eventually(t, harness.Soon, "the Deployment's pods run on both nodes", func() error { return spreadOver(s, "d", names...) })
	var on string
	harness.Eventually(t, harness.Soon, "the StatefulSet's pod runs", func() error {
		var err error
		if on, err = s.TryKubectl("get", "pod", "s-0", "-o", "jsonpath={.spec.nodeName}"); err != nil { // it is made in a moment
			return err
		}
		return runningOn(s, "s", on)
	})
	i := slices.Index(names, on)
	return site, s, agents[i], agents[1-i]
}

// keptByAutonomy is nil when a node has been lost for twice its pods' toleration, and they are still there.
func keptByAutonomy(s, node *harness.Server) error {
	at, err := s.TryKubectl("get", "node", node.NodeName(), "-o",
		`jsonpath={.spec.taints[?(@.effect=="NoExecute")].timeAdded}`)
	if err != nil {
		return err
	}
	times := strings.Fields(at)
	if len(times) == 0 {
		return errors.New("the node is not tainted yet")
	}
	if since, err := time.Parse(time.RFC3339, times[0]); err != nil || time.Since(since) < 10*time.Second {
		return errors.Join(err, fmt.Errorf("the node is tainted since %s only", times[0]))
	}
	ending, err := s.TryKubectl("get", "pods", "-o", `jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.metadata.name} {end}`)
	if err == nil && ending != "" {
		return fmt.Errorf("pods were evicted: %s", ending)
	}
	return err
}

// TestPodsOfDeadNodeAreReplaced: a dead node's pods are replaced on another one when its autonomy and the cluster's
// tolerations are over; a StatefulSet's, which may exist once only, when a user says by the taint that the node is out
// of service; and the node's return leaves nothing of them behind.
func TestPodsOfDeadNodeAreReplaced(t *testing.T) {
	t.Parallel() // it mostly waits
	site, s, victim, left := withLeaveable(t)
	names := slices.Sorted(slices.Values([]string{victim.NodeName(), left.NodeName()}))

	s.Insists("annotate", "node", victim.NodeName(), "coracle.dev/autonomy=24h")
	vanished := time.Now()
	site.Split(victim.Machine, s.Machine)
	site.Split(victim.Machine, left.Machine)
	eventually(t, vanished, "no pod of the node is evicted, though the toleration is over", func() error { return keptByAutonomy(s, victim) })
	eventually(t, vanished, "its pods are not ready all the same", func() error { return runningOn(s, "d", left.NodeName()) })
	s.Insists("annotate", "node", victim.NodeName(), "coracle.dev/autonomy-")
	eventually(t, vanished, "the Deployment's pods run on the node that is left", func() error { return runningOn(s, "d", left.NodeName(), left.NodeName()) })
	// It is unknown whether the StatefulSet's pod runs still, and it is not to run twice.
	eventually(t, vanished, "the StatefulSet's pod is not replaced", func() error { return runningOn(s, "s") })
	taintedAt := time.Now()
	s.Insists("taint", "--overwrite", "node", victim.NodeName(), "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
	eventually(t, taintedAt, "the StatefulSet's pod runs, with its volume, on the node that is left", func() error { return runningOn(s, "s", left.NodeName()) })

	back := time.Now()
	site.Heal()
	eventually(t, back, "the node is Ready again", func() error { return isReady(s, victim, "True") })
	eventually(t, back, "the node has no taints", func() error {
		// Nothing else removes this one; where it is gone already that is an error.
		_, _ = s.TryKubectl("taint", "node", victim.NodeName(), "node.kubernetes.io/out-of-service-")
		out, err := s.TryKubectl("get", "node", victim.NodeName(), "-o", "jsonpath={.spec.taints}")
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
	eventually(t, back, "no pod and no container of before is left", func() error {
		out, err := s.TryKubectl("get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}")
		if err == nil && strings.Contains(out, victim.NodeName()) {
			err = fmt.Errorf("pods are on %s", out)
		}
		if err != nil {
			return err
		}
		procs, err := victim.Run("ps", "ax", "-o", "args")
		if err == nil && strings.Contains(procs, "testbox serve") {
			err = errors.New(procs)
		}
		return err
	})
	s.Insists("scale", "deployment", "d", "--replicas", "4")
	eventually(t, back, "new pods run on the node that came back", func() error {
		return spreadOver(s, "d", slices.Sorted(slices.Values([]string{names[0], names[0], names[1], names[1]}))...)
	})
}
