//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNodeFailureLeavesVoter: a server of three whose node cannot start, or has ended the process, serves and votes.
// Its node does not stay ready. While the store needs its vote, it does not restart to try the node again.
func TestNodeFailureLeavesVoter(t *testing.T) {
	t.Parallel() // it mostly waits for the minutes after which a node is tried again
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer()
	first.StartNode()
	// A node that vanished at the same time would keep the victim's from being marked.
	other, victim := site.NewMachine().NewPeer(first, "--disable-agent"), site.NewMachine().NewPeer(first)
	registries := filepath.Join(victim.Dir, "registries.yaml")
	victim.Args = append(victim.Args, "--private-registry", registries)
	testenv.NoError(t, os.WriteFile(registries, []byte("mirrors: {}\n"), 0o600))
	for _, s := range []*harness.Server{other, victim} {
		s.Start()
	}
	for _, s := range []*harness.Server{first, victim} {
		harness.Eventually(t, harness.Longer, s.NodeName()+" is ready", func() error { return s.NodeReady(s) })
	}
	first.Members(0, "any one server")

	testenv.NoError(t, victim.Stop())
	testenv.NoError(t, os.WriteFile(registries, []byte("mirrors: ["), 0o600))
	victim.Start()
	statusSays(t, victim, `node +failed.*registries\.yaml.*after 1m0s`)
	began := victim.InLog("coracle starts")
	other.Kill()
	victim.Creates("configmap", "by-its-vote", "--from-literal=a=1")
	statusSays(t, victim, `node +failed.*the store needs this server`)
	testenv.Equal(t, victim.InLog("coracle starts"), began, "starts while the store needs the server:")
	other.Start()
	statusSays(t, victim, `node +failed.*registries\.yaml.*after 5m0s`)
	harness.Eventually(t, harness.Longer, "the node that is off is not ready", func() error {
		return harness.Exactly("Unknown")(first.TryKubectl("get", "node", victim.NodeName(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`))
	})
	victim.Creates("configmap", "at-last", "--from-literal=a=1")

	testenv.NoError(t, victim.Stop())
	testenv.NoError(t, os.WriteFile(registries, []byte("mirrors: {}\n"), 0o600))
	victim.Start()
	harness.Eventually(t, harness.Longer, "the node is ready again", func() error { return first.NodeReady(victim) })
	testenv.NoError(t, syscall.Kill(victim.Pid(), syscall.SIGABRT)) // within the minute of the start's trial
	victim.WaitExit(harness.Soon)
	victim.Start()
	statusSays(t, victim, `node +failed.*SIGABRT`)
	victim.Creates("configmap", "after-the-crash", "--from-literal=a=1")
}

// statusSays waits until coracle status has a line that matches want.
func statusSays(t *testing.T, s *harness.Server, want string) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^\s*` + want)
	harness.Eventually(t, harness.Longer, fmt.Sprintf("the status has the line %q", want), func() error {
		if err := s.Alive(); err != nil {
			return err
		}
		if out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir); !line.MatchString(out) {
			return fmt.Errorf("%w:\n%s", err, strings.TrimSpace(out))
		}
		return nil
	})
}
