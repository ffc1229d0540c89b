//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
)

// TestNodeBehindNAT: no server can connect to a node; logs, exec, port-forward, metrics and what goes to its pods work through
// each of three servers all the same, over the connections that the node keeps open. Nor is it dead when the server that leads does
// not hear it any more, as long as another one does.
func TestNodeBehindNAT(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.Start()
	first.WaitAPI()
	servers := []*harness.Server{first}
	for range 2 {
		s := site.NewMachine().NewPeer(first, "--disable-agent")
		s.Start()
		s.WaitAPI()
		servers = append(servers, s)
	}
	a := site.NewMachine().NewAgent(first)
	for _, s := range servers {
		site.NoConnecting(s.Machine, a.Machine)
	}
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, harness.Soon, "the node is ready", func() error { return first.NodeReady(a) })
	first.Kubectl("run", "guest", "--image="+harness.BoxImage, "--image-pull-policy=Never", "--", "testbox", "serve")
	first.Kubectl("wait", "--for=condition=Ready", "pod/guest", "--timeout=180s")

	for _, s := range servers {
		// A server that is new to the node is connected to within half a minute: until then it cannot reach the node.
		harness.Eventually(t, harness.Soon, "logs", func() error {
			out, err := s.TryKubectl("logs", "guest", "--request-timeout=10s")
			if err == nil && !strings.Contains(out, "serving on 8080") {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
		harness.Says(t, s.Kubectl("exec", "guest", "--", "echo", "hi"), "hi")
		s.In(t).Prints([]string{"container_memory_working_set_bytes"}, "get", "--raw", "/api/v1/nodes/"+a.NodeName()+"/proxy/metrics/resource") // a new pod is measured some time after its start
		harness.Says(t, s.Kubectl("get", "--raw", "/api/v1/namespaces/default/pods/guest:8080/proxy/"), "guest")
		harness.Says(t, forwarded(t, s, "guest"), "guest")
	}
	// A node that one server hears is not dead, whatever the one that leads hears.
	site.Split(first.Machine, a.Machine)
	// A window in which nothing may happen has no event that ends it.
	for began := time.Now(); time.Since(began) < 15*time.Second; time.Sleep(time.Second) {
		out, err := servers[1].TryKubectl("get", "node", a.NodeName(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			t.Logf("no answer, while another leader may be elected: %v", err)
		} else if out != "True" {
			t.Fatalf("cut off from one server: Ready is %q", out)
		}
	}
	if out, err := servers[1].Run("bash", "-c", "timeout 2 bash -c '</dev/tcp/"+a.IP+"/10250'"); err == nil {
		t.Errorf("a server can connect to the node: this test shows nothing: %s", out)
	}
}

// forwarded reads the page of a pod's port 8080 through kubectl port-forward.
func forwarded(t *testing.T, s *harness.Server, pod string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), harness.Soon)
	defer cancel()
	forward := s.KubectlCommand(ctx, "port-forward", "pod/"+pod, ":8080")
	out, err := forward.StdoutPipe()
	if err == nil {
		err = forward.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = forward.Wait()
	}()
	var port int
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	} else if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	page, err := s.Run(harness.Box(t), "get", fmt.Sprintf("http://127.0.0.1:%d/", port), "60")
	if err != nil {
		t.Error(err)
	}
	return page
}
