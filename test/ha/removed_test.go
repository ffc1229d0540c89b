//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"net"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestRemovedWhileItRuns: the server that an agent uses is taken out of the cluster and is not stopped, and then
// another one, which the first one takes for a member still. The agent turns to one that is left, and so do the own
// nodes of both: what is new in the cluster reaches all three.
func TestRemovedWhileItRuns(t *testing.T) {
	c := NewOfNodes(t, 4, 1)
	c.serveEverywhere()
	agent := c.Agents[0]
	removed := c.usedBy(t, agent)
	c.removeServer(t, removed)
	next := c.Servers[0]
	c.removeServer(t, next)
	began, other := time.Now(), c.Servers[0]
	const ip = "10.43.99.150"
	harness.Eventually(t, soon, "a Service is made", func() error {
		_, err := other.In(t).TryApply(fmt.Sprintf(another, 0, ip))
		return err
	})
	for m, address := range map[*harness.Server]string{agent: balanced, removed: own, next: own} {
		harness.Eventually(t, soon, fmt.Sprintf("the API answers on machine %d", m.Number), func() error {
			_, err := c.Client(m.Machine, address, askTimeout).CoreV1().Services(metav1.NamespaceDefault).Get(t.Context(), "another-0", metav1.GetOptions{})
			return err
		})
		goes := visit(m.Machine, net.JoinHostPort(ip, "80"))
		harness.Eventually(t, soon, fmt.Sprintf("a Service that is new is reached from machine %d", m.Number), func() error { return goes(t.Context()) })
	}
	t.Logf("machines %d and %d were taken out: what is new reaches their nodes, and agent %d, which used the first, after %v", removed.Number, next.Number, agent.Number, time.Since(began).Round(100*time.Millisecond))
}
