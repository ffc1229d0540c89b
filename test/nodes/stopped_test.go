//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// beside is a StatefulSet whose pod runs where the one of leaveable does. It has no volume: that one's is on its node's
// disk for all that coracle knows, and a node without other pods does not say that it stopped.
var beside = harness.Workload("StatefulSet", "w", "serviceName: w", `
  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname,
  labelSelector: {matchLabels: {app: s}}}]}}, containers: [`+harness.BoxYAML+`, command: [testbox, serve]}]`)

// TestStoppedNodeFreesStatefulSet: a node that stopped its pods before its machine was switched off is out of service
// once the tolerations are over, so that a StatefulSet's pod and its volume move to another node without a person; and
// it is in service again as soon as it reports another boot.
func TestStoppedNodeFreesStatefulSet(t *testing.T) {
	t.Parallel() // it mostly waits
	_, s, victim, left := withLeaveable(t)
	taints := func() (string, error) {
		return s.TryKubectl("get", "node", victim.NodeName(), "-o", `jsonpath={range .spec.taints[*]}{.key}={.value}:{.effect} {end}`)
	}
	s.InsistsOn(beside)
	harness.Eventually(t, harness.Soon, "a StatefulSet's pod without a volume runs there too", func() error { return runningOn(s, "w", victim.NodeName()) })
	out, err := victim.Run(victim.Coracle(), "node", "stop-pods", "--within", "20s", "--data-dir", victim.DataDir)
	testenv.NoError(t, err, "%s", out)
	testenv.Contains(t, out, "stopped ", "the command said:")
	testenv.Equal(t, victim.WaitExit(harness.Soon), 0, "the exit code of the process whose pods were stopped:")
	boot := s.Insists("get", "node", victim.NodeName(), "-o", "jsonpath={.status.nodeInfo.bootID}")
	testenv.Equal(t, s.Insists("get", "node", victim.NodeName(), "-o", `jsonpath={.metadata.annotations.coracle\.dev/stopped}`), boot, "the node's mark:")

	off := time.Now()
	victim.PowerOff()
	eventually(t, off, "the StatefulSet's pod runs, with its volume, on the node that is left", func() error { return runningOn(s, "s", left.NodeName()) })
	eventually(t, off, "and the one without a volume", func() error { return runningOn(s, "w", left.NodeName()) })
	found := testenv.Must(taints())(t)
	testenv.True(t, strings.Contains(found, "node.kubernetes.io/out-of-service=coracle-stopped:NoSchedule"), "the node has the taints %s", found)

	victim.PowerOn()
	// All machines have the host's boot ID, and this one needs another.
	id := filepath.Join(victim.Dir, "boot_id")
	testenv.NoError(t, os.WriteFile(id, []byte("01234567-89ab-4cde-8f01-23456789abcd\n"), 0o444))
	testenv.Must(victim.Run("mount", "--bind", id, "/proc/sys/kernel/random/boot_id"))(t)
	back := time.Now()
	victim.Start()
	eventually(t, back, "the node is Ready again", func() error { return s.NodeReady(victim) })
	eventually(t, back, "the node has no taints", func() error {
		out, err := taints()
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
	eventually(t, back, "the StatefulSet has one pod, and no container of it is on the node that came back", func() error {
		if err := runningOn(s, "s", left.NodeName()); err != nil {
			return err
		}
		on, err := s.TryKubectl("get", "pods", "-l", "app=s", "-o", "jsonpath={.items[*].spec.nodeName}")
		if err == nil && on != left.NodeName() {
			err = fmt.Errorf("pods of it are on %s", on)
		}
		return err
	})
}
