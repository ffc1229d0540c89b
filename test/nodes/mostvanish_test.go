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
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMostNodesVanish: two of three nodes vanish together, and then all three at once, as when the server that leads is
// cut off. Services stop sending to their pods, but no pod is moved, though one node's are moved after its tolerations
// (TestPodsOfDeadNodeAreReplaced); and when the nodes are back all is as it was.
func TestMostNodesVanish(t *testing.T) {
	harness.SkipUnlessWhole(t, "it waits for minutes in which nothing may happen")
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	const tolerated = 15 // s: longer than upstream's 5 s between two looks, of which one may come while the Nodes are being written (docs/adr/0065)
	s := site.NewMachine().NewServer("--disable-agent", "--default-toleration-seconds", fmt.Sprint(tolerated))
	agents := withAgents(t, s, 3)
	s.InsistsOn(strings.ReplaceAll(spreadService, "replicas: 2", "replicas: 3"))
	harness.Eventually(t, harness.Soon, "the Service has three endpoints", func() error { return endpoints(s, 3) })
	pods := func() (string, error) {
		return s.TryKubectl("get", "pods", "-l", "app=d", "--sort-by=.metadata.name", "-o",
			`jsonpath={range .items[*]}{.metadata.name} on {.spec.nodeName}, deleted {.metadata.deletionTimestamp}, {.status.containerStatuses[0].containerID}{"\n"}{end}`)
	}
	before := s.Insists("get", "pods", "-l", "app=d", "-o", "name")
	was, err := pods()
	testenv.Require(t, err == nil && strings.Count(before, "pod/") == 3, "%v: %s", err, before)
	for _, tt := range []struct {
		name   string
		vanish func()
		left   int
	}{
		{"two of three", func() {
			for _, a := range agents[1:] {
				site.CutOff(a.Machine)
			}
		}, 1},
		{"all", func() { site.CutOff(s.Machine) }, 0},
	} {
		vanished := time.Now()
		tt.vanish()
		eventually(t, vanished, tt.name+" vanish: the Service does not use them", func() error { return endpoints(s, tt.left) })
		// A window in which nothing may happen has no event that ends it. One node's pods are replaced after some 14 s
		// and the toleration.
		for time.Since(vanished) < (30+tolerated)*time.Second {
			if is, err := pods(); err != nil || is != was {
				t.Fatalf("%s vanish: after %v the pods are\n%s\nand were\n%s\n%v", tt.name, time.Since(vanished).Round(time.Second), is, was, err)
			}
			time.Sleep(time.Second) // between two looks
		}
		back := time.Now()
		site.Heal()
		for _, a := range agents {
			eventually(t, back, tt.name+" come back: a node is ready", func() error { return s.NodeReady(a) })
		}
		eventually(t, back, tt.name+" come back: the Service uses all", func() error { return endpoints(s, 3) })
		if is, err := pods(); err != nil || is != was {
			t.Errorf("%s came back: the pods are\n%s\nand were\n%s\n%v", tt.name, is, was, errors.Join(err))
		}
	}
}
