//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAuthoritiesAreNamedAndRenewed: an operator's authorities end in a month. Status on the server and on an agent
// says so. Then coracle's command renews all, and the operator puts in one more certificate of server-ca, made with its
// key. The server and the agent work again, with the data and the tokens that they had.
func TestAuthoritiesAreNamedAndRenewed(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	s := site.NewMachine().NewServer("--disable-agent")
	tls := s.Seen("server", "tls")
	for _, name := range pki.Signers() {
		testenv.NoError(t, testca.WriteOwn(tls, string(name), time.Now().AddDate(0, 1, 0)))
	}
	s.StartAPI()
	s.Creates("configmap", "before", "--from-literal=a=b")
	a := site.NewMachine().NewAgent(s)
	later := site.NewMachine().NewAgent(s) // it has the token of today
	a.Start()
	harness.Eventually(t, longer, "the node is ready", func() error { return s.NodeReady(a) })
	for _, m := range []*harness.Server{s, a} {
		harness.Eventually(t, soon, "status names the authorities", func() error {
			out, err := m.Run(m.Coracle(), "status", "--data-dir", m.DataDir)
			testenv.True(t, err != nil, "status of a %s has the exit code 0", m.Role)
			return lacks(out, "! certificates: ", "server-ca ends on ", "client-ca ends on ", "coracle certificate renew-authority")
		})
	}
	testenv.Check(t, lacks(s.Kubectl("get", "--raw", "/metrics"), `coracle_certificate_end_timestamp_seconds{certificate="peer-ca"}`))
	testenv.Check(t, lacks(s.Kubectl("get", "--raw", "/api/v1/nodes/"+a.NodeName()+"/proxy/metrics"), `coracle_certificate_end_timestamp_seconds{certificate="server-ca"}`))

	testenv.NoError(t, s.Stop())
	good := testenv.Must(os.ReadFile(filepath.Join(tls, "server-ca.crt")))(t)
	foreign := t.TempDir()
	testenv.NoError(t, testca.WriteOwn(foreign, "server-ca", time.Now().AddDate(1, 0, 0)))
	wrong := testenv.Must(os.ReadFile(filepath.Join(foreign, "server-ca.crt")))(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(tls, "server-ca.crt"), wrong, 0o600))
	s.Start()
	testenv.True(t, s.WaitExit(soon) != 0, "a server starts with a certificate of another key")
	testenv.Check(t, s.LogSays("a new certificate has to be made with the key that is there"))
	testenv.NoError(t, os.WriteFile(filepath.Join(tls, "server-ca.crt"), good, 0o600))

	out := testenv.Must(s.Run(s.Coracle(), "certificate", "renew-authority", "--data-dir", s.DataDir))(t)
	testenv.Check(t, lacks(out, "peer-ca ", "new certificate", "systemctl restart coracle"))
	testenv.NoError(t, testca.WriteOwn(tls, "server-ca", time.Now().AddDate(1, 0, 0)))
	s.StartAPI()
	s.Kubectl("get", "configmap", "before")
	testenv.NoError(t, a.Stop())
	a.Start()
	later.Start()
	harness.Eventually(t, longer, "the node is ready again", func() error { return s.NodeReady(a) })
	harness.Eventually(t, longer, "a node with a token of before is ready", func() error { return s.NodeReady(later) })
	for _, m := range []*harness.Server{s, a} {
		harness.Eventually(t, soon, "status names no authority any more", func() error {
			out, _ := m.Run(m.Coracle(), "status", "--data-dir", m.DataDir)
			if err := lacks(out, "certificates "); err != nil || strings.Contains(out, "! certificates") {
				return errors.New(out)
			}
			return nil
		})
	}
}

// lacks returns an error if a text does not contain all of the words.
func lacks(text string, want ...string) error {
	for _, w := range want {
		if !strings.Contains(text, w) {
			return fmt.Errorf("no %q in:\n%s", w, text)
		}
	}
	return nil
}
