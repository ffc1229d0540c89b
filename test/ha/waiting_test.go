//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// late is a pod of a node that is named.
const late = `
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  nodeName: %s
  containers:
  - {name: c, image: ` + harness.BoxImage + `, imagePullPolicy: Never, command: [testbox, serve]}
`

// TestServerThatWaits: a server is started again whose store waits, since the others, who lead, cannot connect to it.
// It listens at one address of its machine alone. Its own node goes on through another server, as does kubectl there,
// and it is back with its own when its store is. Then power comes back for it alone: its pods run on, and kubectl says
// what is the matter.
func TestServerThatWaits(t *testing.T) {
	c := &Cluster{T: t, nodes: true, prepare: func(s *harness.Server) {
		s.AddBoxImage()
		if s.Number == 3 {
			s.Args = append(s.Args, "--bind-address", s.IP)
		}
	}}
	c.start(3, 0)
	c.serveEverywhere()
	c.Lead(c.Servers[0])
	other, waits := c.Servers[0], c.Servers[2]
	waits.Kill()
	for _, s := range c.Servers[:2] {
		c.Site.NoConnecting(s.Machine, waits.Machine)
	}
	began := time.Now()
	waits.Start()

	const ip = "10.43.99.160"
	harness.Eventually(t, soon, "a Service is made", func() error {
		_, err := other.In(t).TryApply(fmt.Sprintf(another, 0, ip))
		return err
	})
	other.InsistsOn(fmt.Sprintf(late, waits.NodeName()))
	harness.Eventually(t, soon, "kubectl has an answer on the machine", func() error {
		_, err := waits.TryKubectl("get", "service", "another-0")
		return err
	})
	answered := time.Since(began)
	goes := visit(waits.Machine, net.JoinHostPort(ip, "80"))
	harness.Eventually(t, soon, "a Service that is new is reached from the machine", func() error { return goes(t.Context()) })
	reached := time.Since(began)
	api := c.Ask(other)
	harness.Eventually(t, soon, "a pod that is new runs there", func() error {
		p, err := api.CoreV1().Pods(metav1.NamespaceDefault).Get(t.Context(), "late", metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("it is %s", p.Status.Phase)
		}
		return err
	})
	ran := time.Since(began)
	harness.Eventually(t, soon, "the nodes are ready", func() error { return c.nodesReady(t.Context(), api) })
	t.Log(says(t, waits, "Meanwhile the server at", "status"))
	c.Site.Heal()
	back := time.Now()
	c.WaitWhole()
	t.Logf("a server's store waited: kubectl there had an answer after %v, a new Service was reached after %v, a new pod ran after %v; whole %v after the others reached it", answered.Round(100*time.Millisecond),
		reached.Round(100*time.Millisecond), ran.Round(100*time.Millisecond), time.Since(back).Round(100*time.Millisecond))

	for _, s := range c.Servers[:2] {
		s.PowerOff()
	}
	waits.Kill()
	waits.Start()
	harness.Eventually(t, soon, "kubectl says what is the matter", func() error {
		out, err := waits.TryKubectl("get", "nodes")
		if want := "its store waits for the cluster's other servers"; err == nil || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("%w, %s, want %q", err, out, want)
		}
		return nil
	})
	visits := visit(waits.Machine, c.service())
	harness.Eventually(t, soon, "the machine's own pod is reached", func() error { return visits(t.Context()) })
	testenv.NoError(t, waits.Alive())
	testenv.Check(t, waits.Stop(), "a server that waits cannot be stopped")
}
