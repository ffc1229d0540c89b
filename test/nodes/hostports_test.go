//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// hostPortPod is a pod on a node with one host port.
func hostPortPod(name, node string, port int) string {
	return fmt.Sprintf(`
{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {nodeName: %s, terminationGracePeriodSeconds: 0, containers: [
  {name: box, image: "%s", imagePullPolicy: Never, command: [testbox, serve], ports: [{containerPort: 8080, hostPort: %d}]}]}}
---`, name, node, harness.BoxImage, port)
}

// serverAndAgent are two machines; the agent's node is ready.
func serverAndAgent(t *testing.T, args ...string) (server, agent *harness.Server) {
	t.Helper()
	site := harness.NewSite(t)
	server = site.NewMachine().NewServer("--disable-agent", "--token", "a-secret-of-servers")
	server.StartAPI()
	agent = site.NewMachine().NewAgent(server, args...)
	agent.AddBoxImage()
	agent.Start()
	harness.Eventually(t, patient, "the agent's node is ready", func() error { return server.NodeReady(agent) })
	return server, agent
}

// hiddenToken wants the token with which coracle was started on a machine not to be in the list of its processes.
func hiddenToken(s *harness.Server) {
	s.T.Helper()
	list, _ := s.Run("sh", "-c", "cat /proc/[0-9]*/cmdline") // without those that end meanwhile
	if token := s.Args[slices.Index(s.Args, "--token")+1]; strings.Contains(list, token) || !strings.Contains(list, "--token\x00*") {
		s.T.Errorf("%s: the token %s is among the arguments of its processes, or there is no such argument:\n%q", s.NodeName(), token, list)
	}
}

// closesForeignQueries wants another machine's connection to the cluster's DNS to be closed without an answer.
func closesForeignQueries(t *testing.T, from, to *harness.Server) {
	t.Helper()
	c := testenv.Must(from.Dial(t.Context(), "tcp", net.JoinHostPort(to.IP, "10053")))(t)
	defer c.Close()
	question := "\x00\x1c\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0akubernetes\x00\x00\x01\x00\x01"
	_, _ = c.Write([]byte(question)) // the connection may be closed already
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the cluster's DNS answers a machine outside the cluster by TCP")
	}
}

// TestHostPortsLeaveTheNodeAlone: a pod with the port of containerd's streaming server gets no exec, and none gets the
// port by which an agent reaches the API: neither one that comes later, nor one that had it while the agent used
// another port.
func TestHostPortsLeaveTheNodeAlone(t *testing.T) {
	server, agent := serverAndAgent(t, "--lb-server-port=6445", "--kubelet-arg=healthz-port=10248")
	name := agent.NodeName()
	server.Apply(hostPortPod("early", name, 6444))
	server.Kubectl("wait", "--for=condition=Ready", "pod/early", "--timeout=180s")
	testenv.NoError(t, agent.Stop())
	agent.Args = slices.DeleteFunc(agent.Args, func(arg string) bool { return arg == "--lb-server-port=6445" })
	agent.Start()
	harness.Eventually(t, patient, "the agent reaches the API past the pod", func() error {
		_, err := server.TryKubectl("exec", "early", "--", "true")
		return err
	})
	server.Kubectl("delete", "pod/early", "--timeout=180s")

	hiddenToken(server)
	hiddenToken(agent)
	server.ReservedListeners()
	agent.ReservedListeners()
	server.ListsItsPorts(func() (string, error) { return server.TryKubectl("get", "--raw", "/metrics") })
	agent.ListsItsPorts(func() (string, error) {
		return server.TryKubectl("get", "--raw", "/api/v1/nodes/"+name+"/proxy/metrics")
	}, 10248)
	closesForeignQueries(t, server, agent)
	mode := testenv.Must(os.Stat(filepath.Join(agent.DataDir, "agent")))(t).Mode().Perm()
	testenv.Equal(t, mode, 0o700, "the mode of the node's folder:")
	own := slices.DeleteFunc(agent.Listeners(), func(at string) bool { return !strings.HasPrefix(at, harness.OwnLoopback) })
	port, err := strconv.ParseUint(strings.TrimPrefix(strings.Join(own, " "), harness.OwnLoopback), 16, 16)
	testenv.Require(t, err == nil, "listeners at 127.67.79.82: %q, want the streaming server's alone", own)
	server.Apply(hostPortPod("victim", name, 18080) + hostPortPod("taker", name, int(port)) + hostPortPod("greedy", name, 6444) + hostPortPod("nosy", name, 10248))
	many := `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "many"}, "spec": {"nodeName": "` + name + `", "containers": [{"name": "box", "image": "` + harness.BoxImage + `", "ports": [`
	for i := range 257 {
		many += fmt.Sprintf(`{"containerPort": 8080, "hostPort": %d},`, 20000+i)
	}
	server.Apply(strings.TrimSuffix(many, ",") + "]}]}}")
	server.Kubectl("wait", "--for=condition=Ready", "pod/victim", "pod/taker", "--timeout=180s")
	testenv.Contains(t, server.Insists("exec", "victim", "--", "echo", "it is the victim"), "it is the victim", "exec:")
	if out, err := agent.Run(harness.Box(t), "get", fmt.Sprintf("http://127.0.0.1:%d/", port), "60"); err != nil || strings.TrimSpace(out) != "taker" {
		t.Errorf("the same host port at 127.0.0.1: %q, %v", out, err)
	}
	for pod, want := range map[string]string{"greedy": "the host port 6444 is the cluster's own", "nosy": "the host port 10248 is the cluster's own", "many": "the pod has 257 host ports"} {
		harness.Eventually(t, patient, "the event of "+pod+" says why it does not start", func() error {
			out, err := server.TryKubectl("get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
	}
}

// TestKubeletWithoutTheAPI: a node whose kubelet cannot reach the API is not ready until it can, an agent's as well as
// a server's own.
func TestKubeletWithoutTheAPI(t *testing.T) {
	harness.ByHand(t)
	site := harness.NewSite(t)
	server := site.NewMachine().NewServer()
	server.StartNode()
	agent := site.NewMachine().NewAgent(server)
	agent.Start()
	harness.Eventually(t, patient, "the agent's node is ready", func() error { return server.NodeReady(agent) })
	ready := func(n *harness.Server) string { // 127.0.0.1 may be cut off
		out, _ := server.TryKubectlFrom(server.Machine, "get", "node", n.NodeName(), "-o",
			`jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.reason}{end}`)
		return out
	}
	for _, cut := range []struct {
		what, packets, verdict string
		of                     *harness.Server
		port                   string
	}{
		{"refused", "tcp flags & (syn | ack) == syn", "reject with tcp reset", agent, "6444"},
		{"dropped in silence", "", "drop", agent, "6444"}, // those of connections that are open, too
		{"dropped in silence", "", "drop", server, "6443"},
	} {
		if out, err := cut.of.NFT(fmt.Sprintf("add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "+
			"add rule inet cut out ip daddr 127.0.0.1 tcp dport %s %s %s", cut.port, cut.packets, cut.verdict)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if cut.packets != "" {
			if out, err := cut.of.Run("ss", "-K", "-t", "sport = :6444 or dport = :6444"); err != nil { // as at a restart of the agent
				t.Fatalf("%v\n%s", err, out)
			}
		}
		const says = "the node is not ready; its pods keep running"
		before, began := cut.of.InLog(says), time.Now()
		testenv.Until(t, patient, "a node whose packets to the API are "+cut.what+" is not ready",
			func() bool { return ready(cut.of) == "False KubeletWithoutAPI" })
		t.Logf("%s, %s: not ready after %s", cut.of.NodeName(), cut.what, time.Since(began).Round(time.Second))
		testenv.Until(t, patient, "the log says why", func() bool { return cut.of.InLog(says) > before })
		if out, err := cut.of.NFT("delete table inet cut"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		testenv.Until(t, patient, "it is ready again", func() bool { return ready(cut.of) == "True KubeletReady" })
		t.Logf("ready again after %s", time.Since(began).Round(time.Second))
	}
}
