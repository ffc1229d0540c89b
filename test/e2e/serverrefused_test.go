//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// What a server that is asked logs.
const (
	notLetIn = "rejected a joining machine"
	letIn    = "a machine has joined"
	// seldom stands for notLetIn, or nothing: another refusal of the same machine may have had its line within ten
	// seconds.
	seldom = "seldom"
)

// TestRefusedServerSaysWhy: a machine that may not become a server of the cluster says why and ends, and the server
// that it asked has one line about it. Nothing of that keeps the same machine, with the same data directory, from
// joining as it should; it does so through a node, and waits while no server answers.
func TestRefusedServerSaysWhy(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.StartAPI()
	first.Creates("configmap", "kept")
	a := site.NewMachine().NewAgent(first)
	a.Start()
	harness.Eventually(t, longer, "the node is ready", func() error { return first.NodeReady(a) })
	peer := site.NewMachine().NewPeer(first)

	refusedTokens(t, first, peer)
	for _, name := range []string{"joined.json", "tls", "token", "store"} {
		if _, err := os.Stat(filepath.Join(peer.DataDir, "server", name)); !os.IsNotExist(err) {
			t.Errorf("a machine that was not let in has %s: %v", name, err)
		}
	}
	refusedSettings(t, first, peer)
	t.Run("the name of a node", func(t *testing.T) {
		refusedServer(t, first, peer, seldom, []string{"there is a node named " + a.NodeName() + " already, and it is alive", "--node-name"}, "--node-name", a.NodeName())
	})
	t.Run("a store of its own", func(t *testing.T) { refusedWithStore(t, first, peer) })
	t.Run("no server at the address", func(t *testing.T) {
		s := *peer
		s.Args = append(slices.Clone(peer.Args), "--server", "https://10.77.0.250:6443")
		s.Start()
		for _, want := range []string{"the server cannot join yet; retrying", "no server answers at 10.77.0.250:6443"} {
			harness.Eventually(t, soon, "it says that it tries again, and why", func() error { return s.LogSays(want) })
		}
		testenv.Check(t, s.Stop())
	})
	t.Run("through a node", func(t *testing.T) { joinsThroughNode(t, first, a, peer) })
}

// refusedTokens: tokens that are none for a server of this cluster. What is seen to be wrong on the machine is not
// sent.
func refusedTokens(t *testing.T, first, peer *harness.Server) {
	token := func(file string) string {
		data := testenv.Must(os.ReadFile(first.Seen("server", file)))(t)
		return strings.TrimSpace(string(data))
	}
	right, agents := token("token"), token("agent-token")
	hash, _, _ := strings.Cut(right, "::")
	secret := func(token string) string { return token[strings.LastIndex(token, ":")+1:] }
	expires := createdToken(first, "1h")
	var other net.Listener // a program that takes connections and says nothing that a server would
	testenv.NoError(t, first.Site.Do(func() (err error) {
		other, err = net.Listen("tcp", net.JoinHostPort(harness.OutsideIP, "0"))
		return err
	}))
	defer other.Close()
	go writeHello(other) // until that is closed
	for _, tt := range []struct {
		name, log string // log: of the first refusal, since a source has one line in ten seconds
		args      []string
		want      []string
	}{
		{"a wrong secret", notLetIn, []string{"--token", hash + "::server:wrong"}, []string{"the token is not the cluster's", "coracle token print"}},
		{"agents' token", "", []string{"--token", agents}, []string{"this is a token for agents; it was not sent", "coracle token print --server"}},
		{"agents' secret alone", seldom, []string{"--token", secret(agents)},
			[]string{"that is a token for agents", "adds nodes only", "coracle token print --server"}},
		{"a token that expires", "", []string{"--token", expires}, []string{"this is a token for agents; it was not sent"}},
		{"another cluster's", "", []string{"--token", "CRC1" + strings.Repeat("0", 64) + "::server:" + secret(right)}, []string{"another cluster"}},
		{"a token that was cut off", "", []string{"--token", hash[:20] + "::server:" + secret(right)}, []string{"--token", "was it cut off when copied?"}},
		{"another program", "", []string{"--server", "https://" + other.Addr().String()}, []string{"what answers at " + other.Addr().String() + " is no server of a Coracle cluster"}},
	} {
		t.Run(tt.name, func(t *testing.T) { refusedServer(t, first, peer, tt.log, tt.want, tt.args...) })
	}
}

// writeHello answers each connection with a line.
func writeHello(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintln(c, "220 hello")
		_, _ = io.Copy(io.Discard, c) // until the other end has read that and goes
		_ = c.Close()
	}
}

// refusedSettings: what a whole cluster has or has not is the cluster's, and a server with other flags reports
// both values.
func refusedSettings(t *testing.T, first, peer *harness.Server) {
	t.Helper()
	both := func(flag, own, cluster string) string {
		return fmt.Sprintf("--%s: this server was given %q, but its cluster has %q; remove the flag", flag, own, cluster)
	}
	parts := "coredns,manifests,servicelb,network-policy,local-storage,metrics-server,helm-controller"
	for _, tt := range []struct {
		name  string
		flags [][3]string // name, value, the cluster's
		want  []string
	}{
		{name: "networks and times", flags: [][3]string{
			{"cluster-cidr", "10.99.0.0/16", "10.42.0.0/16"},
			{"service-cidr", "10.98.0.0/16", "10.43.0.0/16"},
			{"service-node-port-range", "31000-32000", "30000-32767"},
			{"cluster-dns", "10.98.0.99", "10.43.0.10"},
			{"cluster-domain", "other.example", "cluster.local"},
			{"network-backend", "host-gw", "vxlan"},
			{"load-balancer-pool", "10.77.0.240-10.77.0.249", ""},
			{"default-toleration-seconds", "77", "60"},
			{"disable-kube-proxy", "true", "false"},
		}},
		{name: "encrypted resources", flags: [][3]string{{"encrypt-resources", "configmaps", ""}}, want: []string{both("encrypt-resources", "secrets,configmaps", "secrets")}},
		{name: "encryption and parts", flags: [][3]string{{"secrets-encryption", "false", "true"}, {"disable", parts, ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var args []string
			want := tt.want
			for _, f := range tt.flags {
				args = append(args, "--"+f[0]+"="+f[1])
				if tt.want == nil {
					want = append(want, both(f[0], f[1], f[2]))
				}
			}
			refusedServer(t, first, peer, letIn, want, args...) // it finds out when it has the cluster's settings
		})
	}
}

// refusedServer runs a server that is expected to refuse to start, with further arguments. log is what the one that it
// asks says of it, once; empty if it is not asked.
func refusedServer(t *testing.T, asked, peer *harness.Server, log string, want []string, args ...string) {
	t.Helper()
	count := func(text string) int { return asked.InLog(text) }
	before := map[string]int{letIn: count(letIn), notLetIn: count(notLetIn)}
	out, code := runServer(peer.Machine, append(slices.Clone(peer.Args), args...)...)
	testenv.Equal(t, code, 1, "exit code")
	_, last, found := strings.Cut(out, "\ncoracle: ") // what it says last is for the user who started it
	if !found {
		last = out
	}
	harness.Says(t, last, want...)
	t.Log(last)
	testenv.False(t, strings.Contains(out, "goroutine "), "it crashed:\n%s", out)
	if log == letIn || log == notLetIn {
		before[log]++
	}
	harness.Eventually(t, soon, "the server that it asked has one line about it", func() error {
		for text, n := range before {
			got := count(text)
			if log == seldom && text == notLetIn && got == n+1 {
				continue
			}
			if got != n {
				return fmt.Errorf("%q is there %d times, want %d:\n%s", text, got, n, asked.LogTail(10))
			}
		}
		return nil
	})
}

// refusedWithStore: a server that has started a cluster of its own joins no other one, and goes on as it was.
func refusedWithStore(t *testing.T, first, peer *harness.Server) {
	m := peer.Machine
	s := m.NewServer("--disable-agent")
	s.DataDir, s.Log = filepath.Join(m.Dir, "own"), filepath.Join(m.Dir, "own.log")
	s.Args = append(s.Args, "--data-dir", s.DataDir)
	s.StartAPI()
	s.Creates("configmap", "own")
	testenv.NoError(t, s.Stop())
	joins := *peer
	joins.Args = append(slices.Clone(peer.Args), "--disable-agent", "--data-dir", s.DataDir)
	refusedServer(t, first, &joins, "", []string{"of a server that started a cluster: it cannot join another one. Nothing was changed", "--data-dir"})
	s.StartAPI()
	s.Kubectl("get", "configmap", "own")
	testenv.NoError(t, s.Stop())
	testenv.NoError(t, os.Remove(s.Kubeconfig)) // of that cluster
}

// joinsThroughNode: a machine that was refused so often joins with what is right. It is given the address of a node;
// that one leads to a server as soon as one answers.
func joinsThroughNode(t *testing.T, first, a, peer *harness.Server) {
	testenv.NoError(t, first.Stop())
	peer.Args = append(peer.Args, "--server", "https://"+a.IP+":6443")
	peer.Start()
	harness.Eventually(t, soon, "it waits for a server", func() error {
		return peer.LogSays("no server answers at " + a.IP + ":6443: the machine there accepts the connection")
	})
	first.StartAPI()
	peer.WaitAPI()
	peer.Kubectl("get", "configmap", "kept")
	harness.Eventually(t, longer, "its node is ready", func() error { return first.NodeReady(peer) })
	testenv.Contains(t, first.Members(0, "With a third server any one may fail"), peer.NodeName()+" ", "it is no member:")
}
