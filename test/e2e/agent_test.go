//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAgentJoinsAndRestartsWithoutItsServer: a second machine joins, runs a pod that one can look into from the
// server's machine, and stays a node when it starts again while its server is down.
func TestAgentJoinsAndRestartsWithoutItsServer(t *testing.T) {
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	s.StartAPI()
	a := site.NewMachine().NewAgent(s)
	a.AddBoxImage()
	run := filepath.Join(a.DataDir, "run") // in memory, as /run is: only there is the ingress' table kept
	testenv.NoError(t, os.MkdirAll(run, 0o755))
	testenv.Must(a.Run("mount", "-t", "tmpfs", "-o", "mode=755", "run", run))(t)
	a.Start()
	ready := func() error { return s.NodeReady(a) }
	harness.Eventually(t, longer, "the node is ready", ready)
	s.Kubectl("run", "guest", "--image="+harness.BoxImage, "--image-pull-policy=Never", "--", "sh", "-c", "echo hello; sleep 3600")
	s.Kubectl("wait", "--for=condition=Ready", "pod/guest", "--timeout=180s")
	s.In(t).Prints([]string{"hello"}, "logs", "guest") // the pod is ready before it has said anything
	s.In(t).Prints([]string{"10.43.0.1"}, "exec", "guest", "--", "nslookup", "kubernetes.default.svc.cluster.local")
	expectStatus(t, a, "agent", "kubelet", "node")
	s.Apply(pod("web", "[testbox, serve]", "ports: [{containerPort: 8080}]", "") + webIngress)
	serves := func() error {
		return harness.Exactly("web\n")(s.Run("curl", "-sS", "--max-time", "5", "-H", "Host: web.example", "http://"+a.IP+"/"))
	}
	harness.Eventually(t, longer, "the Ingress answers at the node", serves)
	pair := []*harness.Server{s, a}
	harness.Eventually(t, soon, "both machines know one another", func() error { return harness.KnowOneAnother(pair, "alive alive ") })
	// An agent's address is as good as a server's for joining: it passes on what is for a server.
	third := site.NewMachine().NewAgent(s)
	third.Args = append(third.Args, "--server", "https://"+a.IP+":6443", "--node-external-ip", "198.51.100.7")
	third.Start()
	harness.Eventually(t, longer, "the node that joined through another node is ready", func() error { return s.NodeReady(third) })
	harness.Eventually(t, soon, "all machines know one another", func() error { return harness.KnowOneAnother(append(pair, third), "alive alive alive ") })
	claimsOnlyItsOwn(t, s, third)
	readsOnlyItsSecrets(t, s, a, third)
	opensNoServersConnection(t, s, a)
	testenv.Check(t, third.Stop())
	harness.Eventually(t, soon, "the node that stopped has left", func() error { return harness.KnowOneAnother(pair, "alive alive left ") })
	started := s.Kubectl("get", "pod", "guest", "-o", "jsonpath={.status.containerStatuses[0].containerID}")

	// The agent starts without its server, and goes on when that is back. An ingress proxy that ends meanwhile is
	// replaced: by the kept table.
	s.Kill()
	testenv.NoError(t, a.Stop())
	testenv.Check(t, serves(), "without server and agent")
	a.Start()
	harness.Eventually(t, soon, "the agent starts with what it knows", func() error {
		return a.LogSays("the cluster cannot be asked for its settings")
	})
	before := proxyPid(t, a)
	testenv.Must(a.Run("kill", "-9", before))(t)
	harness.Eventually(t, soon, "the Ingress answers by another proxy, without a server", serves)
	testenv.False(t, proxyPid(t, a) == before, "the proxy %s was not ended", before)
	s.StartAPI()
	harness.Eventually(t, longer, "the node is ready again", ready)
	testenv.Check(t, serves(), "with the server again")
	testenv.Equal(t, s.Kubectl("get", "pod", "guest", "-o", "jsonpath={.status.containerStatuses[0].containerID}"), started, "the pod's container is")
}

// claimsOnlyItsOwn: a node has the external address that it was started with, and its credentials claim no other one.
func claimsOnlyItsOwn(t *testing.T, s, a *harness.Server) {
	t.Helper()
	addresses := func() string {
		return s.Kubectl("get", "node", a.NodeName(), "-o", "jsonpath={.status.addresses[*].address}")
	}
	harness.Eventually(t, soon, "the node has its external address", func() error {
		if got := addresses(); !strings.Contains(got, "198.51.100.7") {
			return fmt.Errorf("it has %s", got)
		}
		return nil
	})
	before := addresses()
	for address, want := range map[string]string{"203.0.113.9": "is not an address for which the node", "127.0.0.1": "cannot be the address of a machine", s.IP: "is the address of a server"} {
		// kubectl patch would read the status first, which a node may not.
		file := filepath.Join(a.Dir, "claim.json")
		testenv.NoError(t, os.WriteFile(file, []byte(withAddress(t, s.Kubectl("get", "node", a.NodeName(), "-o", "json"), address)), 0o600))
		var out string
		err := harness.Reaching(func() (err error) {
			out, err = a.Run(a.Coracle(), "kubectl", "--kubeconfig", filepath.Join(a.DataDir, "agent", "cred", "kubelet.kubeconfig"),
				"replace", "--raw", "/api/v1/nodes/"+a.NodeName()+"/status", "-f", file)
			return err
		})
		testenv.True(t, err != nil && strings.Contains(out+err.Error(), want),
			"the node claims %s: %s, %v, want %q", address, out, err, want)
	}
	testenv.Equal(t, addresses(), before, "its addresses are")
}

// readsOnlyItsSecrets: a Secret that a pod of one node mounts is read by that node's kubelet, and by no credentials of
// another node.
func readsOnlyItsSecrets(t *testing.T, s, has, other *harness.Server) {
	t.Helper()
	s.Kubectl("create", "secret", "generic", "treasure", "--from-literal=key=gold")
	s.Apply(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: %q, imagePullPolicy: Never, command: [sleep, "3600"], volumeMounts: [{name: treasure, mountPath: /treasure}]}
  volumes: [{name: treasure, secret: {secretName: treasure}}]
`, has.NodeName(), harness.BoxImage))
	s.Kubectl("wait", "--for=condition=Ready", "pod/keeper", "--timeout=180s")
	reads := func(a *harness.Server, identity, what string) (out string, err error) {
		err = harness.Reaching(func() (err error) {
			out, err = a.Run(a.Coracle(), "kubectl", "--kubeconfig", filepath.Join(a.DataDir, "agent", "cred", identity+".kubeconfig"), "get", "--raw", "/api/v1/"+what)
			return err
		})
		if err != nil {
			out += err.Error()
		}
		return out, err
	}
	const treasure = "namespaces/default/secrets/treasure"
	if out, err := reads(has, "kubelet", treasure); err != nil || !strings.Contains(out, "Z29sZA==") {
		t.Errorf("the kubelet of the node whose pod mounts a Secret reads %s, %v", out, err)
	}
	for _, identity := range []string{"kubelet", "network"} {
		for _, what := range []string{treasure, "namespaces/default/secrets", "secrets"} {
			if out, err := reads(other, identity, what); err == nil || !strings.Contains(out, "orbidden") {
				t.Errorf("%s of another node reads %s: %s, %v", identity, what, out, err)
			}
		}
	}
	if out, err := reads(has, "network", treasure); err == nil || !strings.Contains(out, "orbidden") {
		t.Errorf("the network parts of the node whose pod mounts a Secret read %s, %v", out, err)
	}
	s.Kubectl("delete", "pod/keeper", "secret/treasure")
}

// opensNoServersConnection: with whatever certificate an agent has, and with whatever an administrator has, no client
// opens the connections at a server's port that servers have among themselves: those of Raft, and the questions about
// nodes. The server's own certificate opens both.
func opensNoServersConnection(t *testing.T, s, a *harness.Server) {
	t.Helper()
	node := nodecreds.In(filepath.Join(a.DataDir, "agent", "cred"))
	servers := func(name string) string { return filepath.Join(s.DataDir, "server", "tls", name) }
	for _, tt := range []struct {
		file string
		may  bool
	}{
		{file: node.KubeletPair}, {file: node.KubeletServing}, {file: node.NetworkPair},
		{file: servers("client-admin.pem")}, {file: servers("client-kube-apiserver.pem")}, {file: servers("serving-kube-apiserver.pem")},
		{file: servers("peer.pem"), may: true},
	} {
		for _, protocol := range []string{peertls.Protocol, liveness.Protocol} {
			if err := opens(t, a.Machine, s.IP+":6443", protocol, tt.file); tt.may != (err == nil) || err != nil && !strings.Contains(err.Error(), "remote error: tls: ") {
				t.Errorf("that %s opens a connection for %s is to be %v: %v", tt.file, protocol, tt.may, err)
			}
		}
	}
}

// opens has a program on a machine open a connection with the certificate in a file. What a server says of that
// certificate comes as the first thing to be read; where it says nothing it waits for what it is asked.
func opens(t *testing.T, from *harness.Machine, address, protocol, file string) error {
	t.Helper()
	pair := testenv.Must(tls.LoadX509KeyPair(file, file))(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	raw := testenv.Must(from.Dial(ctx, "tcp", address))(t)
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, // the certificate is checked by other tests
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}) // whichever authorities it names
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	// A node's name, as one server asks another one about it; the other protocol's connections end by that, without a
	// word of TLS'. Where the server has refused the certificate and closed the connection already, this fails, and its
	// alert is still to be read.
	_, _ = io.WriteString(c, "nobody\n")
	_ = c.SetReadDeadline(time.Now().Add(soon))
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// withAddress is a node with one address more.
func withAddress(t *testing.T, node, address string) string {
	t.Helper()
	var n corev1.Node
	testenv.NoError(t, json.Unmarshal([]byte(node), &n))
	n.ResourceVersion = "" // whatever its kubelet reports meanwhile
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: address})
	out := testenv.Must(json.Marshal(&n))(t)
	return string(out)
}

// TestRefusedAgentSaysWhy: a machine that may not join says why and ends, and the server's log has a line.
func TestRefusedAgentSaysWhy(t *testing.T) {
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	s.StartAPI()
	m := site.NewMachine()
	token := func(file string) string {
		data := testenv.Must(os.ReadFile(filepath.Join(s.DataDir, "server", file)))(t)
		return strings.TrimSpace(string(data))
	}
	right := token("agent-token")
	hash, _, _ := strings.Cut(right, "::")
	expired := expiredToken(t, s)
	for _, tt := range []struct {
		name string
		args []string
		want string
		log  string // of the first: a source has one line in ten seconds
	}{
		{name: "wrong secret", args: []string{"--token", hash + "::agent:wrong"}, want: "not the cluster's", log: "code=token"},
		{name: "server token", args: []string{"--token", token("token")}, want: "token for servers"},
		{name: "bare server token", args: []string{"--token", token("token")[strings.LastIndex(token("token"), ":")+1:]}, want: "token for servers"},
		{name: "other cluster", args: []string{"--token", "CRC1" + strings.Repeat("0", 64) + "::agent:wrong"}, want: "another cluster"},
		{name: "unknown", args: []string{"--token", hash + "::abcdef.0123456789abcdef"}, want: "coracle token create"},
		{name: "expired", args: []string{"--token", expired}, want: "coracle token create"},
		{name: "server's name", args: []string{"--node-name", "kubernetes"}, want: "name of the server's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := m.NewAgent(s)
			a.DataDir = filepath.Join(m.Dir, strings.ReplaceAll(tt.name, " ", "-"))
			a.Log = a.DataDir + ".log"
			a.Args = append(append(a.Args, "--data-dir", a.DataDir), tt.args...)
			before := s.InLog(tt.log)
			a.Start()
			testenv.False(t, a.WaitExit(soon) == 0, "it ended with exit code 0")
			harness.Says(t, a.LogTail(20), tt.want)
			if tt.log != "" {
				harness.Eventually(t, soon, "the server's log has a line more", func() error {
					if s.InLog(tt.log) == before {
						return fmt.Errorf("no new %q in:\n%s", tt.log, s.LogTail(20))
					}
					return nil
				})
			}
		})
	}
}

// createdToken has a server make a token for nodes: again where it is too busy for an answer in time.
func createdToken(s *harness.Server, ttl string) string {
	s.T.Helper()
	var made string
	harness.Eventually(s.T, soon, "a token", func() (err error) {
		made, err = s.Run(s.Coracle(), "token", "create", "--ttl", ttl, "--quiet", "--data-dir", s.DataDir)
		return err
	})
	return strings.TrimSpace(made)
}

// expiredToken is a token for nodes that has worked for a second and does not any more.
func expiredToken(t *testing.T, s *harness.Server) string {
	t.Helper()
	made := createdToken(s, "1s")
	_, secret, _ := strings.Cut(made, "::")
	id, _, _ := strings.Cut(secret, ".")
	harness.Eventually(t, soon, "the token has expired", func() error {
		out, err := s.Run(s.Coracle(), "token", "list", "-o", "json", "--data-dir", s.DataDir)
		if err != nil {
			return err
		}
		var all []struct {
			ID      string
			Expired bool
		}
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		for _, one := range all { // what has expired is deleted soon
			if one.ID == id && !one.Expired {
				return errors.New("it works still")
			}
		}
		return nil
	})
	return made
}
