//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	soon, longer = harness.Soon, harness.Longer
	boxYAML      = harness.BoxYAML
)

// atOnce is how many parts of TestOneNode are at work at a time: more than there are processors, for they mostly wait.
const atOnce = 6

// TestOneNode starts one server on an empty data directory and takes it through what a user does with a cluster.
func TestOneNode(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--console-listen", net.JoinHostPort(m.IP, consolePort))
	images := filepath.Join(s.DataDir, "images")
	testenv.NoError(t, os.MkdirAll(images, 0o755))
	harness.WriteBoxImage(t, filepath.Join(images, "box.tar.gz"))
	began := time.Now()
	s.StartNode()
	t.Logf("empty directory to node Ready: %v", time.Since(began).Round(10*time.Millisecond))
	s.In(t).Await(soon, "serviceaccount/default", "{.metadata.name}", "default")
	s.ReservedListeners()
	s.ListsItsPorts(func() (string, error) { return s.TryKubectl("get", "--raw", "/metrics") })
	foreignFirewall(t, s, aFirewall)

	// Those that wait the longest begin first, for a look of the autoscaler, the next minute, a build: the others take
	// their turns meanwhile.
	t.Run("group", func(t *testing.T) {
		var begun sync.WaitGroup
		places := make(chan struct{}, atOnce)
		for _, sc := range []struct {
			name string
			run  func(*harness.Kube)
		}{
			{"autoscaling", autoscaling}, {"jobs", jobs}, {"extension", extension},
			{"deployment", deployment}, {"interactive", interactive}, {"copy", copyFiles}, {"watch", watch},
			{"init", initContainers}, {"probes", probes}, {"hooks", hooks}, {"restarts", restartPolicies},
			{"resources", resources}, {"config", configuration}, {"volumes", volumes},
			{"daemonset", daemonSet}, {"statefulset", statefulSet}, {"objects", objects},
			{"crd", customResource}, {"admission", admissionPolicy}, {"rbac", rbac}, {"nodeport", nodePort},
			{"loadbalancer", loadBalancer}, {"dns", dns}, {"hardened", hardenedPod}, {"custom-dns", customDNS}, {"scraped", scraped},
			{"console", webConsole}, {"remote-console", remoteConsole},
		} {
			places <- struct{}{}
			begun.Go(func() {
				defer func() { <-places }()
				t.Run(sc.name, func(t *testing.T) { sc.run(s.Namespace(t, sc.name)) }) // t.Parallel would begin them in any order
			})
		}
		begun.Wait()
	})
	s.In(t).Becomes(longer, "", "get", "pods", "-A", "-o", "name")
	s.ReservedListeners() // nor has what pods, clients and the console used opened one
	s.ListsItsPorts(func() (string, error) { return s.TryKubectl("get", "--raw", "/metrics") })
	t.Run("version", func(t *testing.T) {
		out := s.In(t).Kubectl("version", "-o", "json")
		if strings.Count(out, `"gitVersion": "v1.37.`) != 2 || strings.Count(out, "+coracle") < 2 {
			t.Errorf("kubectl version does not say v1.37.x+coracle twice:\n%s", out)
		}
		out = s.In(t).Kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}")
		testenv.False(t, !strings.HasPrefix(out, "containerd://2.") || strings.Contains(out, "+"), "the node's containerd is %s", out)
	})
	t.Run("operations", func(t *testing.T) { operations(t, s) })
	t.Run("crash", func(t *testing.T) { crash(t, s) })
	t.Run("stop", func(t *testing.T) { stopAndStart(t, s) })
	t.Run("another proxy", func(t *testing.T) { otherProxy(t, s) })
}

// pod is a one-container pod of the test image as YAML; more is appended to the container, spec to the pod.
func pod(name, command, more, spec string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 3
%s
  containers:
  - name: box
    image: %s
    imagePullPolicy: Never
    command: %s
%s
`, name, name, indent(spec, 2), harness.BoxImage, command, indent(more, 4))
}

func indent(s string, n int) string {
	if s = strings.Trim(s, "\n"); s == "" {
		return ""
	}
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad)
}

// contains fails the test unless got holds every one of want.
func contains(k *harness.Kube, got string, want ...string) {
	k.T.Helper()
	for _, w := range want {
		testenv.True(k.T, strings.Contains(got, w), "no %q in:\n%s", w, got)
	}
}
