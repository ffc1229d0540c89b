//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestKillsDuringPodStart: a server is killed again and again at some moment of its pods' start. The next one always
// starts them, and when they are deleted nothing of them is left running.
func TestKillsDuringPodStart(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes")
	const rounds, pods = 30, 3
	m := harness.NewMachine(t)
	s := m.NewServer()
	s.AddBoxImage()
	s.StartNode()
	k := s.Namespace(t, "kills")
	for i := range rounds {
		var all strings.Builder
		for j := range pods {
			fmt.Fprintf(&all, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d-%d}\nspec:\n  terminationGracePeriodSeconds: 1\n"+
				"  containers: [%s, command: [testbox, serve]}]\n", i, j, harness.BoxYAML)
		}
		k.Apply(all.String())
		after := time.Duration(rand.IntN(2000)) * time.Millisecond
		time.Sleep(after) // the moment is what is drawn
		k.Kill()
		k.Start()
		for j := range pods {
			name := fmt.Sprintf("p%d-%d", i, j)
			k.Await(harness.Soon, "pod/"+name, "{.status.phase}", "Running")
		}
		k.Kubectl("delete", "pods", "--all", "--wait=false")
	}
	k.Kubectl("delete", "pods", "--all", "--timeout=180s")
	harness.Eventually(t, harness.Soon, "no shim is left", func() error { return m.NoProcess("coracle-helpe[r] -namespace") })
}
