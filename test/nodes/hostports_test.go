//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
)

// hostPortPod is a pod on a node with one host port.
func hostPortPod(name, node string, port int) string {
	return fmt.Sprintf(`
{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: %s, terminationGracePeriodSeconds: 0, containers: [
  {name: box, image: "%s", imagePullPolicy: Never, command: [testbox, serve], ports: [{containerPort: 8080, hostPort: %d}]}]}}
---`, name, node, harness.BoxImage, port)
}

// serverAndAgent are two machines; the agent's node is ready.
func serverAndAgent(t *testing.T) (server, agent *harness.Server) {
	t.Helper()
	site := harness.NewSite(t)
	server = site.NewMachine().NewServer("--disable-agent")
	server.Start()
	server.WaitAPI()
	agent = site.NewMachine().NewAgent(server)
	agent.AddBoxImage()
	agent.Start()
	harness.Eventually(t, patient, "the agent's node is ready", func() error { return server.NodeReady(agent) })
	return server, agent
}

// TestHostPortsLeaveTheNodeAlone: a pod with the port of containerd's streaming server gets no exec, and none gets the port by which an
// agent reaches the API.
func TestHostPortsLeaveTheNodeAlone(t *testing.T) {
	server, agent := serverAndAgent(t)
	table, err := agent.Run("awk", `$4 == "0A" && $2 ~ /^524F437F:/ { print $2 }`, "/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(table), "524F437F:"), 16, 16)
	if err != nil {
		t.Fatalf("listeners at 127.67.79.82: %q, want the streaming server's alone", table)
	}
	name := agent.NodeName()
	server.Apply(hostPortPod("victim", name, 18080) + hostPortPod("taker", name, int(port)) + hostPortPod("greedy", name, 6444))
	server.Kubectl("wait", "--for=condition=Ready", "pod/victim", "pod/taker", "--timeout=180s")
	if out := server.Kubectl("exec", "victim", "--", "echo", "it is the victim"); !strings.Contains(out, "it is the victim") {
		t.Errorf("exec: %q", out)
	}
	if out, err := agent.Run(harness.Box(t), "get", fmt.Sprintf("http://127.0.0.1:%d/", port), "60"); err != nil || strings.TrimSpace(out) != "taker" {
		t.Errorf("the same host port at 127.0.0.1: %q, %v", out, err)
	}
	harness.Eventually(t, patient, "the pod's event says why it does not start", func() error {
		out, err := server.TryKubectl("get", "events", "--field-selector", "involvedObject.name=greedy", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "the host port 6444 is the cluster's own") {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
}

// TestLocalAddressOfTheAPI: a node whose programs cannot reach the API's local address is not ready until they can. Servers wait for such
// a node for as long as for any whose machine answers.
func TestLocalAddressOfTheAPI(t *testing.T) {
	harness.ByHand(t)
	server, agent := serverAndAgent(t)
	for _, cut := range []struct{ what, packets, verdict string }{
		{"refused", "tcp flags & (syn | ack) == syn", "reject with tcp reset"},
		{"dropped in silence", "", "drop"}, // those of connections that are open, too
	} {
		if out, err := agent.NFT(fmt.Sprintf("add table inet cut; "+
			"add chain inet cut out { type filter hook output priority 0; }; add rule inet cut out tcp dport 6444 %s %s",
			cut.packets, cut.verdict)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if cut.packets != "" {
			if out, err := agent.Run("ss", "-K", "-t", "sport = :6444 or dport = :6444"); err != nil { // as at a restart of the agent
				t.Fatalf("%v\n%s", err, out)
			}
		}
		before := agent.InLog("do not reach the local address of the API")
		harness.Eventually(t, patient, "a node whose packets to the API are "+cut.what+" is not ready", func() error {
			if server.NodeReady(agent) == nil {
				return errors.New("it is ready")
			}
			return nil
		})
		if n := agent.InLog("do not reach the local address of the API"); n == before {
			t.Errorf("packets are %s: the log does not say why", cut.what)
		}
		if out, err := agent.NFT("delete table inet cut"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		harness.Eventually(t, patient, "it is ready again", func() error { return server.NodeReady(agent) })
	}
}
