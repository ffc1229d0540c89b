//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

const (
	notReached   = "a node is not reached from this machine"
	reachedAgain = "a node is reached again"
)

// visits connects to an address from a machine's host, so often that an endpoint which nobody answers for would be met.
func visits(from *harness.Machine, address string) error {
	out, err := from.Run("bash", "-c", fmt.Sprintf("for i in {1..20}; do timeout 5 bash -c 'exec 3<>/dev/tcp/%s/80' || exit 1; done", address))
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestUnreachableNode: with no server left that could write anything, a Service sends nothing to a node that has vanished; names are
// resolved; and its return undoes it. That datagrams are lost marks nobody, and a node that is cut off from all others goes on as it was.
func TestUnreachableNode(t *testing.T) {
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	s.Start()
	waitAPI(s)
	var agents []*harness.Server
	for range 2 {
		a := site.NewMachine().NewAgent(s)
		a.AddBoxImage()
		a.Start()
		agents = append(agents, a)
	}
	for _, a := range agents {
		harness.Eventually(t, soon, "the nodes are ready", func() error { return nodeReady(s, a) })
	}
	s.Apply(spreadService)
	harness.Eventually(t, soon, "the Service has two endpoints", func() error { return endpoints(s, 2) })
	address := s.Kubectl("get", "service", "d", "-o", "jsonpath={.spec.clusterIP}")
	stays, victim := agents[0], agents[1]
	for _, a := range agents {
		harness.Eventually(t, soon, "the Service is served", func() error { return visits(a.Machine, address) })
	}

	// A window in which nothing may happen has no event that ends it. Gossip asks each member within two seconds.
	site.LoseDatagrams(victim.Machine, stays.Machine, 6443, 100)
	time.Sleep(8 * time.Second)
	for _, a := range agents {
		if logSays(a, notReached) == nil {
			t.Errorf("that datagrams are lost makes %s go round a node:\n%s", a.NodeName(), a.LogTail(30))
		}
	}
	site.Heal()

	vanished := time.Now()
	site.CutOff(s.Machine)
	site.CutOff(victim.Machine)
	eventually(t, vanished, "the node that stays goes round the one that vanished", func() error { return logSays(stays, notReached) })
	eventually(t, vanished, "each connection from there succeeds", func() error { return visits(stays.Machine, address) })
	eventually(t, vanished, "the node that is cut off reaches its own pod", func() error { return visits(victim.Machine, address) })

	back := time.Now()
	site.Heal()
	for _, a := range agents {
		eventually(t, back, "they reach one another", func() error { return logSays(a, reachedAgain) })
	}
	eventually(t, back, "the nodes are ready", func() error { return errors.Join(isReady(s, stays, "True"), isReady(s, victim, "True")) })
	eventually(t, back, "the Service has two endpoints", func() error { return endpoints(s, 2) })
	for _, a := range agents {
		eventually(t, back, "each connection succeeds", func() error { return visits(a.Machine, address) })
	}
}
