//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
)

// TestNodeBehindNAT: no server can connect to a node; logs, exec, attach, port-forward, metrics and what goes to its
// pods (requests, admission webhooks, aggregated APIs) work through each of three servers all the same, over the
// connections that the node keeps open. Two of the servers have no node of their own, and one leads.
func TestNodeBehindNAT(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.StartAPI()
	servers := []*harness.Server{first}
	for _, args := range [][]string{{"--disable-agent"}, {}} {
		s := site.NewMachine().NewPeer(first, args...)
		s.StartAPI()
		servers = append(servers, s)
	}
	a := site.NewMachine().NewAgent(first)
	for _, s := range servers {
		site.NoConnecting(s.Machine, a.Machine)
		site.LoseDatagrams(s.Machine, a.Machine, clusterconfig.VXLANPort, 100) // the pod network would lead round the fault
	}
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, longer, "the node is ready", func() error { return first.NodeReady(a) })
	first.InsistsOn(onNode(a, "guest", "[testbox, serve]") + "---\n" +
		onNode(a, "listener", `[sh, -c, 'while read -r line; do echo "heard $line"; done']`))
	extendOn(t, first, a)
	first.Insists("wait", "--for=condition=Ready", "pod/guest", "pod/listener", "--timeout=180s") // a leader may have to be elected
	slacks(t, first, a, "guest")

	for _, s := range servers {
		// A server that is new to the node is connected to within half a minute: until then it cannot reach the node.
		s.In(t).Prints([]string{"serving on 8080"}, "logs", "guest", "--request-timeout=10s")
		s.In(t).Prints([]string{"hi"}, "exec", "guest", "--", "echo", "hi")
		harness.Eventually(t, soon, "an answer of the pod that "+s.NodeName()+" attaches to", func() error { return attached(s, "listener", "hello through "+s.NodeName()) })
		s.In(t).Prints([]string{"container_memory_working_set_bytes"}, "get", "--raw", "/api/v1/nodes/"+a.NodeName()+"/proxy/metrics/resource") // a new pod is measured some time after its start
		s.In(t).Prints([]string{"guest"}, "get", "--raw", "/api/v1/namespaces/default/pods/guest:8080/proxy/")
		harness.Eventually(t, soon, "the pod's page through a port that "+s.NodeName()+" forwards", func() error { return forwards(s, "guest") })
		asksExtensions(t, s)
	}
	pod := first.Insists("get", "pod", "extend", "-o", "jsonpath={.status.podIP}")
	for _, s := range servers {
		for _, to := range []string{a.IP + "/10250", pod + "/8443"} {
			if out, err := s.Run("bash", "-c", "timeout 2 bash -c '</dev/tcp/"+to+"'"); err == nil {
				t.Errorf("%s can connect to %s: this test shows nothing: %s", s.NodeName(), to, out)
			}
		}
	}
}

// onNode is a pod of the test image on a node, whose container has an input.
func onNode(node *harness.Server, name, command string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: %s, terminationGracePeriodSeconds: 1, containers: [%s, stdin: true, command: %s}]}}
`, name, node.NodeName(), harness.BoxYAML, command)
}

// attached says a line to a pod through kubectl attach, and fails unless the pod says that it has heard it.
func attached(s *harness.Server, pod, line string) error {
	ctx, cancel := context.WithTimeout(s.T.Context(), soon)
	attach := s.KubectlCommand(ctx, "attach", "--stdin", "--quiet", pod)
	in, inErr := attach.StdinPipe()
	out, outErr := attach.StdoutPipe()
	err := errors.Join(inErr, outErr)
	if err == nil {
		err = attach.Start()
	}
	if err != nil {
		cancel()
		return err
	}
	var saying sync.WaitGroup
	saying.Go(func() {
		for ctx.Err() == nil {
			if _, err := fmt.Fprintln(in, line); err != nil {
				return // kubectl has ended, which its reader hears too
			}
			select { // again until it is heard: an answer that comes before the output is attached is lost
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	defer func() {
		cancel()
		_ = attach.Wait() // it was killed
		saying.Wait()
	}()
	var heard []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "heard "+line {
			return nil
		}
		heard = append(heard, lines.Text())
	}
	return fmt.Errorf("no answer to %q, only %q", line, heard)
}

// forwards fails unless the page of a pod's port 8080 is read through kubectl port-forward, which ends with the first
// connection to the pod that it cannot open.
func forwards(s *harness.Server, pod string) error {
	ctx, cancel := context.WithTimeout(s.T.Context(), soon)
	defer cancel()
	forward := s.KubectlCommand(ctx, "port-forward", "pod/"+pod, ":8080")
	out, err := forward.StdoutPipe()
	if err == nil {
		err = forward.Start()
	}
	if err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = forward.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	var port int
	if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d", &port); err != nil {
		return fmt.Errorf("%q: %w", line, err)
	}
	page, err := s.Run(harness.Box(s.T), "get", fmt.Sprintf("http://127.0.0.1:%d/", port), "60")
	if err == nil && strings.TrimSpace(page) != pod {
		err = fmt.Errorf("the page is %q", page)
	}
	return err
}
