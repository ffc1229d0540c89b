//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAuthoritiesRenewedAfterTheirEnd: the authorities of three servers and an agent end while all run. Status says
// which have ended, on each machine. They are renewed on each server with the keys that they have, and the servers
// start again. The data is there, the agent comes back by itself, and tokens of before let a server and a node join.
func TestAuthoritiesRenewedAfterTheirEnd(t *testing.T) {
	harness.ByHand(t) // it waits for the end
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	end := time.Now().Add(4 * time.Minute)
	for _, name := range pki.Signers() {
		testenv.NoError(t, testca.WriteOwn(s.Seen("server", "tls"), string(name), end))
	}
	s.StartAPI()
	servers := []*harness.Server{s}
	for range 2 {
		p := site.NewMachine().NewPeer(s, "--disable-agent")
		p.StartAPI()
		servers = append(servers, p)
	}
	s.Creates("configmap", "before", "--from-literal=a=b")
	a := site.NewMachine().NewAgent(s)
	a.Start()
	harness.Eventually(t, soon, "the node is ready", func() error { return s.NodeReady(a) })
	peer, node := site.NewMachine().NewPeer(s, "--disable-agent"), site.NewMachine().NewAgent(s)
	testenv.Require(t, time.Now().Before(end), "the machine is too slow: the authorities have ended already")

	for _, m := range append(servers, a) {
		harness.Eventually(t, time.Until(end)+time.Minute, fmt.Sprintf("machine %d says that authorities have ended", m.Number), func() error {
			out, err := m.Run(m.Coracle(), "status", "--data-dir", m.DataDir)
			if err == nil {
				return errors.New("the exit code is 0")
			}
			if !strings.Contains(out, "server-ca ended on ") || !strings.Contains(out, "coracle certificate renew-authority") {
				return errors.New(out)
			}
			return nil
		})
	}
	testenv.True(t, testenv.Err(s.TryKubectl("get", "configmap", "before")) != nil, "the API is trusted after the end of its authority")
	for _, m := range servers {
		testenv.Must(m.Run(m.Coracle(), "certificate", "renew-authority", "--data-dir", m.DataDir))(t)
	}
	began := time.Now()
	for _, m := range servers {
		testenv.Check(t, m.Stop())
		m.Start()
	}
	for _, m := range servers {
		m.WaitAPI()
		m.Kubectl("get", "configmap", "before")
	}
	t.Logf("three servers answer %v after the first was stopped", time.Since(began).Round(time.Second))
	harness.Eventually(t, 3*time.Minute, "the node is ready again", func() error {
		if err := s.NodeReady(a); err != nil {
			return err
		}
		_, err := a.Run(a.Coracle(), "status", "--data-dir", a.DataDir)
		return err
	})
	t.Logf("the agent is back %v after the first server was stopped", time.Since(began).Round(time.Second))
	peer.Start()
	node.Start()
	peer.WaitAPI()
	harness.Eventually(t, soon, "a node with a token of before is ready", func() error { return s.NodeReady(node) })
}
